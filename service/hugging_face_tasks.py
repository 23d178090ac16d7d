"""The three tasks as Hugging Face's clients ask for them: their parameters, read and answered by our own functions."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from pydantic import TypeAdapter

from service import question_answering, text_classification
from service.errors import InvalidRequestError
from service.hugging_face_answers import entities, spans
from service.hugging_face_schemas import (
    GroupedEntity,
    QuestionAnswering,
    Span,
    TextClassification,
    TokenClassification,
    TokenEntity,
)
from service.models import Model
from service.schemas import (
    LONGEST_ANSWER,
    Label,
    Output,
    QuestionAnsweringParameters,
    QuestionInput,
    Text,
    TextClassificationParameters,
    TextPair,
)
from service.task import Task
from service.windows import Encoded, Floats, Windows

# Defaults of transformers 4.57's QuestionAnsweringPipeline, in tokens.
ANSWER_LENGTH: Final = 15
STRIDE: Final = 128

# What our errors call the parameters, and what these clients do.
NAMES: Final = {"/parameters/stride": "/parameters/doc_stride", "/parameters/window": "/parameters/max_seq_len"}


@contextmanager
def _their_names() -> Iterator[None]:
    """Raise errors of parameters under the names that the client used."""
    try:
        yield
    except InvalidRequestError as error:
        fields = [replace(field, pointer=NAMES.get(field.pointer, field.pointer)) for field in error.fields]
        detail = "; ".join(f"{field.pointer}: {field.message}" for field in fields)
        raise InvalidRequestError(detail, *fields) from None


def _encode_question(model: Model, item: QuestionInput, parameters: QuestionAnswering, pointer: str) -> Encoded:
    longest = parameters.max_answer_len or ANSWER_LENGTH
    if parameters.scoring == "global" and longest > LONGEST_ANSWER:
        message = f"scoring 'global' finds answers of up to {LONGEST_ANSWER} tokens: ask for that or less"
        raise InvalidRequestError.at("/parameters/max_answer_len", message, value=longest, limit=LONGEST_ANSWER)
    with _their_names():
        windows = model.windows.of_length(parameters.max_seq_len)
        question, context = question_answering.tokenized(model, item, pointer)
        stride = _stride(windows, parameters.doc_stride, windows.room(question), len(context))
        return windows.pair(question, context, stride, pointer, parameters.max_question_len or windows.length)


def _stride(windows: Windows, given: int | None, room: int, tokens: int) -> int | None:
    """Return the stride of the pipeline; None, which is our own, where it has no effect or the pipeline would fail."""
    stride = min(windows.length // 2, STRIDE) if given is None else given
    if tokens <= room and stride <= windows.length - 2:
        return None
    return None if given is None and stride >= room else stride


def _decode_question(
    model: Model, item: QuestionInput, encoded: Encoded, logits: Sequence[Floats], parameters: QuestionAnswering
) -> list[Span]:
    longest = parameters.max_answer_len or ANSWER_LENGTH
    top_k = parameters.top_k or 1
    aligned, no_answer = parameters.align_to_words is not False, bool(parameters.handle_impossible_answer)
    if parameters.scoring == "pipeline":
        return spans(
            item.context,
            encoded,
            logits,
            top_k=top_k,
            longest=longest,
            align_to_words=aligned,
            no_answer=no_answer,
        )
    ours = QuestionAnsweringParameters(
        top_k=top_k, max_answer_tokens=longest, no_answer=no_answer, align_to_words=aligned
    )
    answers = question_answering.decode(model, item, encoded, logits, ours)
    return [Span(score=answer.score, start=answer.start, end=answer.end, answer=answer.answer) for answer in answers]


def _encode_texts(model: Model, item: str | TextPair, _: TextClassification, pointer: str) -> Encoded:
    return text_classification.encode(model, item, TextClassificationParameters(), pointer)


def _decode_texts(
    model: Model, item: str | TextPair, encoded: Encoded, logits: Sequence[Floats], parameters: TextClassification
) -> list[Label]:
    top_k = None if parameters.return_all_scores else parameters.top_k
    ours = TextClassificationParameters(top_k=top_k, function=parameters.function_to_apply)
    return text_classification.decode(model, item, encoded, logits, ours)


def _encode_tokens(model: Model, text: str, parameters: TokenClassification, _: str) -> Encoded:
    if parameters.stride is not None and parameters.aggregation_strategy == "none":
        message = "with aggregation_strategy 'none' overlapping windows cannot be joined: leave it out, all is read"
        raise InvalidRequestError.at("/parameters/stride", message, value=parameters.stride)
    # In the pipeline a stride without effect is no error, nor a label to ignore that the model does not have.
    tokens, windows = model.windows.tokenizer(text), model.windows
    fits = len(tokens) <= windows.length - 2 and (parameters.stride or 0) <= windows.length - 2
    return windows.single(tokens, None if fits else parameters.stride)


def _decode_tokens(
    model: Model, text: str, encoded: Encoded, logits: Sequence[Floats], parameters: TokenClassification
) -> list[TokenEntity | GroupedEntity]:
    ignored = frozenset(["O"] if parameters.ignore_labels is None else parameters.ignore_labels)
    found = entities(
        model,
        text,
        encoded,
        logits,
        strategy=parameters.aggregation_strategy or "simple",
        ignored=ignored,
        by_window=parameters.stride is not None,
    )
    return list(found)


def _golden(entries: Sequence[Output]) -> Any:
    return [entry.model_dump() for entry in entries]


QUESTION_ANSWERING: Final = Task(
    "question-answering", TypeAdapter(QuestionInput), QuestionAnswering, _encode_question, _decode_question, _golden
)
TEXT_CLASSIFICATION: Final = Task(
    "text-classification", text_classification.ITEM, TextClassification, _encode_texts, _decode_texts, _golden
)
TOKEN_CLASSIFICATION: Final = Task(
    "token-classification", TypeAdapter(Text), TokenClassification, _encode_tokens, _decode_tokens, _golden
)
