"""The HTTP face: routes, and nothing that takes time."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, NoReturn

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi import Response as HttpResponse
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from service.errors import FieldError, NotReadyError, problem
from service.metrics import Metrics
from service.middleware import PROBLEM_JSON, BodyGuard, Lifecycle, RequestContext
from service.models import Models
from service.pipeline import TASKS, Pipeline
from service.question_answering import QUESTION_ANSWERING
from service.schemas import (
    Answer,
    Entity,
    Label,
    Problem,
    QuestionAnsweringRequest,
    Request,
    Response,
    TextClassificationRequest,
    TokenClassificationRequest,
)
from service.settings import Settings
from service.task import Entry, Item, Parameters, Task
from service.text_classification import TEXT_CLASSIFICATION
from service.token_classification import TOKEN_CLASSIFICATION
from service.validation import translated

PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"description": text, "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
    for status, text in (
        (400, "The body is no JSON."),
        (404, "No such model here."),
        (413, "Over a limit of this server."),
        (415, "The body does not say that it is JSON."),
        (422, "A field or parameter is wrong: `errors` has its pointer, value and limit."),
        (503, "The queue is full; `Retry-After` says when to try again."),
    )
}


def create_app(settings: Settings, models: Models) -> FastAPI:
    """Return the application; its `state.lifecycle.stopping` turns /readyz to 503."""
    metrics = Metrics(models, TASKS)
    pipeline = Pipeline(settings, metrics)
    lifecycle = Lifecycle()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        pipeline.start()
        yield
        await pipeline.close()

    app = FastAPI(
        title="sparselane",
        version=_version(),
        description="Question answering, text classification and NER with sparse, 8-bit BERT models.",
        lifespan=lifespan,
    )
    app.state.lifecycle = lifecycle
    _document_problems(app)
    # The last added is the outermost.
    app.add_middleware(BodyGuard, max_bytes=settings.max_body_bytes)
    app.add_middleware(RequestContext, metrics=metrics, tasks=frozenset(TASKS), lifecycle=lifecycle)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_problem)
    _add_task_routes(app, pipeline, models)
    _add_operations_routes(app, models, metrics, lifecycle)
    return app


def _document_problems(app: FastAPI) -> None:
    """Put the schema of problem bodies where `PROBLEMS` refers to it: no route returns it, so FastAPI leaves it out."""
    schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    extra = {**schema.pop("$defs"), "Problem": schema}
    original = app.openapi

    def openapi() -> dict[str, Any]:
        document = original()
        document["components"]["schemas"].update(extra)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it


def _version() -> str:
    try:
        return version("sparselane")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0"


def _add_task_routes(app: FastAPI, pipeline: Pipeline, models: Models) -> None:
    async def answered(
        task: Task[Item, Parameters, Entry], body: Request[Item, Parameters], request: HttpRequest
    ) -> HttpResponse:
        model = models.find(task.name, body.model)
        request.state.model = model.name
        answer, stages = await pipeline.answer(task, model, body)
        timing = ", ".join(f"{stage};dur={seconds * 1e3:.2f}" for stage, seconds in stages.items())
        return HttpResponse(answer.model_dump_json(), media_type="application/json", headers={"server-timing": timing})

    @app.post("/v1/question-answering", response_model=Response[Answer], responses=PROBLEMS, tags=["answers"])
    async def question_answering(body: QuestionAnsweringRequest, request: HttpRequest) -> HttpResponse:
        """Find the answers to questions in the texts that come with them."""
        return await answered(QUESTION_ANSWERING, body, request)

    @app.post("/v1/text-classification", response_model=Response[Label], responses=PROBLEMS, tags=["answers"])
    async def text_classification(body: TextClassificationRequest, request: HttpRequest) -> HttpResponse:
        """Label texts, for example with their sentiment."""
        return await answered(TEXT_CLASSIFICATION, body, request)

    @app.post("/v1/token-classification", response_model=Response[Entity], responses=PROBLEMS, tags=["answers"])
    async def token_classification(body: TokenClassificationRequest, request: HttpRequest) -> HttpResponse:
        """Find the people, places and other entities in texts."""
        return await answered(TOKEN_CLASSIFICATION, body, request)


def _add_operations_routes(app: FastAPI, models: Models, metrics: Metrics, lifecycle: Lifecycle) -> None:
    def reasons() -> list[FieldError]:
        failed = [FieldError("", f"{name}: {why}") for name, why in sorted(models.failures.items())]
        return [*failed, *([FieldError("", "the server is stopping")] if lifecycle.stopping else [])]

    @app.get("/healthz", tags=["operations"])
    async def healthz() -> dict[str, str]:
        """Say that the process answers; nothing else, so that a busy engine or a bad model never gets it killed."""
        return {"status": "alive"}

    @app.get("/readyz", tags=["operations"], responses={503: {**PROBLEMS[503], "description": "Why it is not ready."}})
    async def readyz() -> dict[str, object]:
        """Say whether requests should be sent here: every model loaded and proven, and the server not stopping."""
        if why := reasons():
            raise NotReadyError("; ".join(reason.message for reason in why), *why)
        return {"status": "ready", "models": sorted(models.serving)}

    @app.get("/metrics", tags=["operations"], response_class=HttpResponse)
    async def metrics_page() -> HttpResponse:
        """Show the metrics in Prometheus' text format."""
        metrics.ready.set(0 if reasons() else 1)
        return HttpResponse(metrics.page(), headers={"content-type": CONTENT_TYPE_LATEST})


async def _invalid(_: HttpRequest, error: Exception) -> NoReturn:
    """Turn what FastAPI raises for a bad body into our tree; `RequestContext` answers it."""
    assert isinstance(error, RequestValidationError)
    raise translated(error) from None


async def _http_problem(request: HttpRequest, error: Exception) -> JSONResponse:
    """Answer what Starlette itself refuses (no such path, wrong method, unreadable body) as a problem body."""
    assert isinstance(error, HTTPException)
    status = error.status_code
    body = problem(status, HTTPStatus(status).phrase, str(error.detail), request.state.request_id)
    return JSONResponse(body, status, error.headers, media_type=PROBLEM_JSON)
