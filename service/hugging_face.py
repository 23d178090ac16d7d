"""The routes for Hugging Face's clients: /models/{name} answers in the shapes that they parse."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi import Response as HttpResponse
from pydantic import BaseModel
from pydantic_core import to_json

from service.errors import NotReadyError, UnknownModelError
from service.hugging_face_schemas import (
    Answers,
    ModelInfo,
    QuestionAnsweringBody,
    TextClassificationBody,
    TokenClassificationBody,
)
from service.hugging_face_tasks import QUESTION_ANSWERING, TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION
from service.models import Model, Models
from service.pipeline import Pipeline, server_timing
from service.task import Task
from service.validation import checked, read_json, unchecked

Results = list[list[Any]]


@dataclass(frozen=True)
class _Contract:
    """One task: what its body holds, who answers it, and the shape of the answer."""

    body: type[Any]
    task: Task[Any, Any, Any]

    def shape(self, inputs: object, results: Results) -> Any:
        """Return what clients parse: labels are always a list per text, the others only where a list was sent."""
        if self.task is QUESTION_ANSWERING:
            # transformers' pipeline: one answer is an object, whatever top_k; one question is no list.
            answers = [entries[0] if len(entries) == 1 else entries for entries in results]
            return answers[0] if len(answers) == 1 else answers
        if self.task is TOKEN_CLASSIFICATION and not isinstance(inputs, list):
            return results[0]
        return results


CONTRACTS: Final[Mapping[str, _Contract]] = MappingProxyType(
    {
        contract.task.name: contract
        for contract in (
            _Contract(QuestionAnsweringBody, QUESTION_ANSWERING),
            _Contract(TextClassificationBody, TEXT_CLASSIFICATION),
            _Contract(TokenClassificationBody, TOKEN_CLASSIFICATION),
        )
    }
)
BODIES: Final[tuple[type[BaseModel], ...]] = tuple(contract.body for contract in CONTRACTS.values())
SCHEMA: Final = {"anyOf": [{"$ref": f"#/components/schemas/{body.__name__}"} for body in BODIES]}
REQUEST: Final = {"requestBody": {"required": True, "content": {"application/json": {"schema": SCHEMA}}}}


def add_hugging_face_routes(
    app: FastAPI, pipeline: Pipeline, models: Models, problems: dict[int | str, dict[str, Any]]
) -> None:
    """Add /models/{name} with what clients ask below it, and the same at the root for a server of one model."""

    async def answered(model: Model, request: HttpRequest) -> HttpResponse:
        request.state.task, request.state.model = model.task, model.name
        contract = CONTRACTS[model.task]
        sent = read_json(await request.body())
        inputs = unchecked(sent, "inputs")
        pipeline.check_lists(inputs, unchecked(inputs, "question"), unchecked(inputs, "context"))
        body = checked(contract.body.model_validate, sent)
        answer, stages = await pipeline.answer(contract.task, model, body)
        usage = {"x-input-tokens": str(answer.usage.tokens), "x-windows": str(answer.usage.windows)}
        content = to_json(contract.shape(body.inputs, answer.results))
        return HttpResponse(content, media_type="application/json", headers=server_timing(stages) | usage)

    document: dict[str, Any] = {"response_model": Answers, "responses": problems, "tags": ["Hugging Face clients"]}

    @app.post("/models/{name}", openapi_extra=REQUEST, **document)
    async def ask(name: str, request: HttpRequest) -> HttpResponse:
        """Answer a Hugging Face InferenceClient whose URL is that of this model; its task decides what is read."""
        return await answered(named(models, name), request)

    @app.post("/", openapi_extra=REQUEST, **document)
    async def ask_the_only_one(request: HttpRequest) -> HttpResponse:
        """Answer a Hugging Face InferenceClient whose URL is that of this server, where one model serves."""
        return await answered(only(models), request)

    document = {"responses": {404: problems[404]}, "tags": ["Hugging Face clients"]}

    @app.get("/models/{name}", **document)
    @app.get("/models/{name}/info", **document)
    async def model_info(name: str) -> ModelInfo:
        """Describe a model; `InferenceClient.get_endpoint_info` reads it."""
        return described(named(models, name))

    @app.get("/info", **document)
    async def info() -> ModelInfo:
        """Describe the model of a server of one model."""
        return described(only(models))

    document = {**document, "responses": {404: problems[404], 503: problems[503]}}

    @app.get("/models/{name}/health", **document)
    async def model_health(name: str, request: HttpRequest) -> dict[str, str]:
        """Say whether a model answers; `InferenceClient.health_check` is true then."""
        return healthy(named(models, name), request)

    @app.get("/health", **document)
    async def health(request: HttpRequest) -> dict[str, str]:
        """Say whether the model of a server of one model answers."""
        return healthy(only(models), request)


def named(models: Models, name: str) -> Model:
    """Return the model called `name`, whatever its task. Raises UnknownModelError."""
    found = models.serving.get(name)
    try:
        return models.find(found.task if found else "", name)
    except UnknownModelError as error:
        # The name stands in the path, not in the body.
        raise UnknownModelError(error.detail.removeprefix("/model: ")) from None


def only(models: Models) -> Model:
    """Return the only model. Raises UnknownModelError: there are others, or none."""
    serving = dict(models.serving)
    if len(serving) != 1:
        there = ", ".join(f"/models/{name}" for name in sorted(serving)) or "none"
        raise UnknownModelError(f"this server has {len(serving)} models: use the URL of one, here: {there}")
    return next(iter(serving.values()))


def described(model: Model) -> ModelInfo:
    """Return what clients may ask about a model."""
    return ModelInfo(
        model_id=model.name,
        pipeline_tag=model.task,
        model_sha=model.details.get("sha256"),
        model_dtype=model.details.get("precision"),
        max_input_length=model.windows.length,
        labels=list(model.labels),
    )


def healthy(model: Model, request: HttpRequest) -> dict[str, str]:
    """Return that `model` answers. Raises NotReadyError: the server is stopping."""
    if request.app.state.lifecycle.stopping:
        raise NotReadyError("the server is stopping")
    return {"status": "ready", "model": model.name}
