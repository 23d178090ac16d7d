"""Extractive question answering: the span of the context that answers the question."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from service.errors import InvalidRequestError
from service.models import Model
from service.offsets import in_unit
from service.schemas import Answer, QuestionAnsweringParameters, QuestionInput
from service.task import Task
from service.windows import Encoded, Floats, Tokens, with_marks


def encode(model: Model, item: QuestionInput, parameters: QuestionAnsweringParameters, pointer: str) -> Encoded:
    """Return the context's tokens, and windows of [CLS] question [SEP] part of the context [SEP].

    Raises:
        InvalidRequestError: question or context without a token, the question too long for the window, the window for
            the model, or no progress with the stride. TooLargeError: too many windows.
    """
    windows = model.windows.of_length(parameters.window)
    question, context = tokenized(model, item, pointer)
    return windows.pair(question, context, parameters.stride, pointer, parameters.max_question_tokens)


def tokenized(model: Model, item: QuestionInput, pointer: str) -> tuple[Tokens, Tokens]:
    """Return the tokens of question and context. Raises InvalidRequestError where one has none."""
    question = model.windows.tokenizer(item.question)
    context = model.windows.tokenizer(item.context)
    for name, tokens, text in (("question", question, item.question), ("context", context, item.context)):
        if not len(tokens):
            raise InvalidRequestError.at(f"{pointer}/{name}", f"the {name} has no words", value=text)
    return question, context


def decode(
    model: Model,
    item: QuestionInput,
    encoded: Encoded,
    logits: Sequence[Floats],
    parameters: QuestionAnsweringParameters,
) -> list[Answer]:
    """Return the `top_k` answers, best first, from start and end logits, [T, 2] per window.

    A span of tokens is worth its start logit plus its end logit, in the window where that is most. Its score is the
    softmax over all spans of up to `max_answer_tokens` in all windows, so a window without the answer cannot be sure
    of itself and scores never add up to more than 1. Spans grow to whole words unless `align_to_words` is false; those
    that then are the same keep the higher score. (transformers' pipeline normalises each window alone and adds the
    scores of equal texts: see `service.hugging_face_answers`.)
    Where the model can find no answer, or `no_answer` says so, that is one more candidate, the empty one.
    """
    longest = parameters.max_answer_tokens or model.max_answer_tokens or len(encoded.tokens)
    worth = _span_worth(encoded, logits, min(longest, len(encoded.tokens)))
    null = _null_worth(model, logits, parameters.no_answer)
    best = max(worth.max(), null)
    total = np.exp(worth - best).sum(dtype=np.float64) + np.exp(null - best)
    answers: dict[tuple[int, int], float] = {}
    grown = _whole_words if parameters.align_to_words else _tokens_only
    for value, span in _candidates(item.context, encoded, worth, null, grown):
        answers.setdefault(span, float(np.exp(value - best) / total))
        if len(answers) == parameters.top_k:
            break
    found = [Answer(answer=item.context[a:b], score=score, start=a, end=b) for (a, b), score in answers.items()]
    return in_unit(parameters.offset_unit, item.context, found)


def _null_worth(model: Model, logits: Sequence[Floats], wanted: bool | None) -> float:
    """Return what no answer is worth: start plus end logit of [CLS] where that is least, less the model's threshold.

    `wanted` None: only where the model has a threshold, so was trained to say that there is none.
    """
    if wanted is False or (wanted is None and model.no_answer_threshold is None):
        return -np.inf
    return min(float(values[0].sum()) for values in logits) - (model.no_answer_threshold or 0.0)


def _candidates(
    text: str, encoded: Encoded, worth: Floats, null: float, grown: Callable[[str, Encoded, int, int], tuple[int, int]]
) -> Iterator[tuple[np.float32 | float, tuple[int, int]]]:
    """Yield what an answer is worth and its code points, highest first; (0, 0) is no answer, behind its equals."""
    pending = null > -np.inf
    for row, extra in _descending(worth):
        if pending and null > worth[row, extra]:
            pending = False
            yield null, (0, 0)
        yield worth[row, extra], grown(text, encoded, row, row + extra)
    if pending:
        yield null, (0, 0)


def _span_worth(encoded: Encoded, logits: Sequence[Floats], longest: int) -> Floats:
    """Return [N, longest]: what the span from token n to n + extra is worth; -inf where no window holds it."""
    worth = np.full((len(encoded.tokens), longest), -np.inf, np.float32)
    for window, values in zip(encoded.windows, logits, strict=True):
        rows = window.content(values)
        for extra in range(min(longest, len(rows))):
            column = worth[window.start : window.end - extra, extra]
            np.maximum(column, rows[: len(rows) - extra, 0] + rows[extra:, 1], out=column)
    return worth


def _descending(worth: Floats) -> Iterator[tuple[int, int]]:
    """Yield (row, column) of the finite entries of `worth`, highest first, sorting no more than is consumed (about)."""
    flat = worth.ravel()
    done, count = 0, 64
    while done < flat.size:
        count = min(count, flat.size)
        # Everything at least as high as the count-th highest: a superset, so that ties keep one order at every size.
        floor = np.partition(flat, flat.size - count)[flat.size - count]
        found = np.flatnonzero(flat >= floor)
        found = found[np.argsort(-flat[found], kind="stable")]
        for place in found[done:]:
            if flat[place] == -np.inf:
                return
            yield divmod(int(place), worth.shape[1])
        done, count = len(found), len(found) * 8


def _whole_words(text: str, encoded: Encoded, first: int, last: int) -> tuple[int, int]:
    """Return the code points of tokens `first` to `last`, grown to whole words."""
    words, spans = encoded.tokens.words, encoded.tokens.spans
    first = int(np.searchsorted(words, words[first], "left"))
    last = int(np.searchsorted(words, words[last], "right")) - 1
    return int(spans[first, 0]), with_marks(text, int(spans[last, 1]))


def _tokens_only(text: str, encoded: Encoded, first: int, last: int) -> tuple[int, int]:
    """Return the code points of tokens `first` to `last`."""
    return int(encoded.tokens.spans[first, 0]), with_marks(text, int(encoded.tokens.spans[last, 1]))


def golden(entries: list[Answer]) -> Any:
    """Reduce entries to what a manifest's golden example expects."""
    return entries[0].model_dump(include={"answer", "start", "end"})


QUESTION_ANSWERING = Task(
    "question-answering", TypeAdapter(QuestionInput), QuestionAnsweringParameters, encode, decode, golden
)
