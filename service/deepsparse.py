"""Request and answer bodies of the DeepSparse server, which ended in 2025, so that its clients need only a new address.

The schemas are those of github.com/neuralmagic/deepsparse, src/deepsparse/transformers/pipelines, and its
docs/use-cases/nlp; the paths are those of src/deepsparse/server.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Final

import numpy as np
from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi import Response as HttpResponse
from pydantic import BaseModel, Field

from service.documentation import PROBLEMS, documented_answer, documented_body
from service.errors import InvalidRequestError
from service.models import Model, Models
from service.pipeline import TASKS, Pipeline
from service.schemas import (
    CodePoint,
    OneOrMany,
    Output,
    QuestionAnsweringParameters,
    Score,
    Strict,
    Text,
    TextClassificationParameters,
    TokenClassificationParameters,
)
from service.task import Task
from service.token_classification import TOKEN_CLASSIFICATION
from service.translation import Place, ask
from service.validation import checked, read_json, unchecked
from service.windows import Encoded, Floats, merged

QA, CLASSES, ENTITIES = "question-answering", "text-classification", "token-classification"


class Question(Strict):
    """DeepSparse's question; its last version took an `id` too, without effect."""

    question: Annotated[Text, Field(examples=["Who is Mark?"])]
    context: Annotated[Text, Field(examples=["Mark is batman."])]
    id: str | None = None


class Sequences(Strict):
    """DeepSparse's texts to classify: one, several, or several of one or two texts each."""

    sequences: Annotated[OneOrMany[OneOrMany[Text]], Field(examples=[["A quiet triumph."]])]


class Inputs(Strict):
    """DeepSparse's texts to find entities in; `is_split_into_words`: the list holds the words of one text."""

    inputs: Annotated[OneOrMany[Text], Field(examples=["Mary is flying from Nairobi to New York"])]
    is_split_into_words: bool = False


class QuestionAnswer(Output):
    """DeepSparse's answer to a question."""

    score: Score
    answer: str
    start: CodePoint
    end: CodePoint


class Classes(Output):
    """DeepSparse's best label of each text, and its score."""

    labels: list[str]
    scores: list[Score]


class TokenPrediction(Output):
    """A token inside of an entity: `entity` is its tag, `index` its place among the text's tokens, [CLS] being 0."""

    entity: str
    score: Score
    word: str
    start: CodePoint
    end: CodePoint
    index: int
    is_grouped: bool = False


class Predictions(Output):
    """DeepSparse's entities, token by token, of each text."""

    predictions: list[list[TokenPrediction]]


BODIES: Final = (Question, Sequences, Inputs)
ANSWERS: Final = (QuestionAnswer, Classes, Predictions)
DOCUMENTED: Final = documented_body(*BODIES)
ANSWERED: Final[dict[int | str, dict[str, Any]]] = {**PROBLEMS, 200: documented_answer(*ANSWERS)}


@dataclass(frozen=True)
class _Work:
    """What a body asks for: the items, how to write the answer, and where in the body each item came from."""

    task: Task[Any, Any, Any]
    items: Sequence[object]
    parameters: Strict
    answer: Callable[[list[list[Any]]], BaseModel]
    place: Place


def is_deepsparse(body: object) -> bool:
    """Tell DeepSparse's bodies from the Open Inference Protocol's, whose `inputs` are a list of objects."""
    if not isinstance(body, dict):
        return False
    inputs = body.get("inputs")
    texts = isinstance(inputs, str) or (isinstance(inputs, list) and inputs[:1] != [] and isinstance(inputs[0], str))
    return texts or not body.keys().isdisjoint({"question", "context", "sequences"})


async def answer(pipeline: Pipeline, model: Model, body: object) -> HttpResponse:
    """Answer a body as DeepSparse would, with `model`.

    Raises:
        ServiceError: as `Pipeline.answer`; InvalidRequestError where the body is none for the model's task.
    """
    # Words are one input together.
    for name in () if unchecked(body, "is_split_into_words") is True else ("sequences", "inputs"):
        pipeline.check_lists(unchecked(body, name), pointer=f"/{name}")
    work = _WORK[model.task](body)
    response, headers = await ask(pipeline, work.task, model, work.items, work.parameters, work.place)
    content = work.answer(response.results).model_dump_json()
    return HttpResponse(content, media_type="application/json", headers=headers)


def _question(body: object) -> _Work:
    asked = checked(Question.model_validate, body)
    parameters = QuestionAnsweringParameters()
    return _Work(TASKS[QA], [asked.model_dump(exclude={"id"})], parameters, _answered_question, _question_place)


def _question_place(pointer: str) -> str:
    return pointer.removeprefix("/inputs/0") or pointer


def _answered_question(results: list[list[Any]]) -> QuestionAnswer:
    best = results[0][0]
    return QuestionAnswer(score=best.score, answer=best.answer, start=best.start, end=best.end)


def _sequences(body: object) -> _Work:
    asked = checked(Sequences.model_validate, body).sequences
    parameters = TextClassificationParameters()
    if isinstance(asked, str):
        return _Work(TASKS[CLASSES], [asked], parameters, _classes, lambda _: "/sequences")
    items = [_sequence(row, f"/sequences/{i}") for i, row in enumerate(asked)]
    return _Work(TASKS[CLASSES], items, parameters, _classes, _sequence_place)


def _sequence_place(pointer: str) -> str:
    place = pointer.replace("/inputs", "/sequences", 1)
    for name, number in (("/text_pair", "/1"), ("/text", "/0")):
        place = place.removesuffix(name) + number if place.endswith(name) else place
    return place


def _sequence(row: str | Sequence[str], pointer: str) -> object:
    if isinstance(row, str):
        return row
    if not 1 <= len(row) <= 2:
        message = "a row of texts holds one text, or two for a model that reads pairs"
        raise InvalidRequestError.at(pointer, message, value=len(row), limit=2)
    return row[0] if len(row) == 1 else {"text": row[0], "text_pair": row[1]}


def _classes(results: list[list[Any]]) -> Classes:
    return Classes(labels=[best[0].label for best in results], scores=[best[0].score for best in results])


def _inputs(body: object) -> _Work:
    asked = checked(Inputs.model_validate, body)
    texts = [asked.inputs] if isinstance(asked.inputs, str) else asked.inputs
    if asked.is_split_into_words:
        return _words(texts)
    place = _only_input if isinstance(asked.inputs, str) else str
    return _Work(TOKENS, texts, TokenClassificationParameters(), lambda found: Predictions(predictions=found), place)


def _only_input(pointer: str) -> str:
    return "/inputs" if pointer == "/inputs/0" else pointer


def _words(words: Sequence[str]) -> _Work:
    """Read words as one text; only a word's first token is answered, and offsets count from the word's start."""
    text = " ".join(words)
    starts = np.cumsum([0, *(len(word) + 1 for word in words)])

    def predictions(results: list[list[TokenPrediction]]) -> Predictions:
        found: dict[int, TokenPrediction] = {}
        for token in results[0]:
            word = int(np.searchsorted(starts, token.start, "right")) - 1
            if text[starts[word] : token.start].strip() == "":
                moved = {"start": token.start - int(starts[word]), "end": token.end - int(starts[word])}
                found.setdefault(word, token.model_copy(update=moved))
        return Predictions(predictions=[list(found.values())])

    return _Work(TOKENS, [text], TokenClassificationParameters(), predictions, _only_input)


def tokens(
    model: Model, _: str, encoded: Encoded, logits: Sequence[Floats], __: TokenClassificationParameters
) -> list[TokenPrediction]:
    """Return the tokens that are not "O", from logits [T, C] per window, as DeepSparse did without aggregation."""
    if not encoded.windows:
        return []
    rows = merged(encoded, logits).astype(np.float64)
    scores = np.exp(rows - rows.max(axis=1, keepdims=True))
    scores /= scores.sum(axis=1, keepdims=True)
    result = []
    for place, best in enumerate(scores.argmax(axis=1).tolist()):
        if model.labels[best] == "O":
            continue
        start, end = encoded.tokens.spans[place].tolist()
        word = model.windows.tokenizer.token(int(encoded.tokens.ids[place]))
        tag, score = model.labels[best], float(scores[place, best])
        result.append(TokenPrediction(entity=tag, score=score, word=word, start=start, end=end, index=place + 1))
    return result


TOKENS: Final[Task[Any, Any, Any]] = Task(
    ENTITIES,
    TOKEN_CLASSIFICATION.item,
    TOKEN_CLASSIFICATION.parameters,
    TOKEN_CLASSIFICATION.encode,
    tokens,
    lambda found: [token.model_dump(include={"entity", "start", "end"}) for token in found],
)

_WORK: Final[Mapping[str, Callable[[object], _Work]]] = MappingProxyType(
    {QA: _question, CLASSES: _sequences, ENTITIES: _inputs}
)


def _task(body: object) -> str:
    """Return the task that a body is for; DeepSparse's /predict had one model and needed no name."""
    if not isinstance(body, dict) or not is_deepsparse(body):
        message = 'the body is none of {"question": ..., "context": ...}, {"sequences": ...} and {"inputs": texts}'
        raise InvalidRequestError.at("", message, value=body)
    return ENTITIES if "inputs" in body else CLASSES if "sequences" in body else QA


def add_deepsparse_routes(app: FastAPI, pipeline: Pipeline, models: Models) -> None:
    """Add /predict and /predict/{name}, where a DeepSparse server before 1.6 answered by default."""

    async def answered(request: HttpRequest, name: str | None) -> HttpResponse:
        body = read_json(await request.body())
        model = models.find(_task(body), None) if name is None else models.named(name)
        request.state.task, request.state.model = model.task, model.name
        return await answer(pipeline, model, body)

    @app.post("/predict", openapi_extra=DOCUMENTED, responses=ANSWERED, tags=["DeepSparse"])
    async def predict(request: HttpRequest) -> HttpResponse:
        """Answer a body of DeepSparse with the default model of the task that the body is for."""
        return await answered(request, None)

    @app.post("/predict/{name}", openapi_extra=DOCUMENTED, responses=ANSWERED, tags=["DeepSparse"])
    async def predict_with(name: str, request: HttpRequest) -> HttpResponse:
        """Answer a body of DeepSparse with one model."""
        return await answered(request, name)
