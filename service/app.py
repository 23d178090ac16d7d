"""The HTTP face: routes, and nothing that takes time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Final, NoReturn

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi import Response as HttpResponse
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, BeforeValidator
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from service.access import Access
from service.admin import add_admin_routes
from service.deadlines import Deadlines, Door, refuse
from service.deepsparse import add_deepsparse_routes
from service.documentation import ADMIN_PROBLEMS, PROBLEMS
from service.errors import problem
from service.glance import Glance
from service.health import Health
from service.hugging_face import BODIES, add_hugging_face_routes
from service.keys import Keyring
from service.metrics import Metrics
from service.middleware import PROBLEM_JSON, BodyGuard, Lifecycle, RequestContext
from service.model_list import add_model_routes
from service.models import Models
from service.open_inference import add_open_inference_routes
from service.pages import add_page_routes
from service.pipeline import TASKS, Pipeline, server_timing
from service.question_answering import QUESTION_ANSWERING
from service.reloading import Reloader
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
from service.tracing import Tracing
from service.validation import translated, unchecked

# What a page of another origin may send and read; TEI forgot `authorization`, so keys and pages excluded each other.
CORS_REQUEST_HEADERS: Final = (
    *("authorization", "x-api-key", "content-type", "x-request-id", "traceparent", "tracestate"),
    *("x-request-timeout-ms", "x-priority", "inference-header-content-length"),
)
CORS_ANSWER_HEADERS: Final = (
    *("x-request-id", "server-timing", "retry-after", "ratelimit", "ratelimit-policy"),
    *("x-input-tokens", "x-windows", "inference-header-content-length"),
)


def create_app(settings: Settings, models: Models, tracing: Tracing | None = None) -> FastAPI:
    """Return the application.

    Its `state` has what the server needs: `lifecycle`, whose `stopping` turns /readyz to 503, `health`, `door`,
    `glance` and `reloader`, for SIGHUP. `tracing` is the settings', unless given.

    Raises:
        StartupError: the keys file is wrong, or spans are to be sent and the extra `otel` is not installed.
    """
    keys = Keyring(settings.keys_file)
    if tracing is None and settings.otlp_endpoint:
        tracing = Tracing.to(settings.otlp_endpoint)
    metrics = Metrics(models, TASKS, settings.max_queue_tokens, _version())
    reloader = Reloader(models, keys, settings, metrics)
    pipeline = Pipeline(settings, metrics)
    lifecycle = Lifecycle()
    health = Health(models, lifecycle, pipeline, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        pipeline.start()
        heartbeat = asyncio.create_task(health.beat(), name="heartbeat")
        await asyncio.sleep(0)  # for the first beat
        yield
        await pipeline.close()
        heartbeat.cancel()
        reloader.close()
        if tracing is not None:
            await asyncio.to_thread(tracing.close)

    app = FastAPI(
        title="sparselane",
        version=_version(),
        description="Question answering, text classification and NER with sparse, 8-bit BERT models.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load their scripts from elsewhere; ours is in service/pages.py
        redoc_url=None,
        redirect_slashes=False,  # a redirect answers nobody's question, and would be counted as an answer
        # FastAPI's own spans and log events would double ours, and the events hold messages that quote texts.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.lifecycle = lifecycle
    app.state.reloader = reloader
    app.state.health = health
    _complete_document(app, keys.required, Problem, *BODIES)
    _add_middleware(app, settings, metrics, pipeline, keys)
    refusing: ASGIApp = refuse
    for layer in _around(settings, metrics, lifecycle, tracing):
        app.add_middleware(layer.cls, *layer.args, **layer.kwargs)
        refusing = layer.cls(refusing, *layer.args, **layer.kwargs)
    app.state.door = Door(settings.request_timeout_ms, pipeline.check_at_the_door, pipeline.front, refusing)
    # Spans are the application's: with them every refusal takes its way.
    origins = bool(settings.cors_origins)
    app.state.glance = None if tracing else Glance(app.state.door, metrics, TASKS, lifecycle, origins)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_problem)
    _add_task_routes(app, pipeline, models)
    add_model_routes(app, models)
    _add_operations_routes(app, health)
    add_hugging_face_routes(app, pipeline, models, PROBLEMS)
    add_open_inference_routes(app, pipeline, models, health)
    add_deepsparse_routes(app, pipeline, models)
    add_admin_routes(app, models, reloader, PROBLEMS | ADMIN_PROBLEMS)
    add_page_routes(app)
    _answer_head(app)
    return app


def _answer_head(app: FastAPI) -> None:
    """Let HEAD ask what GET may (RFC 9110, 9.1): the server leaves out the body, and the document these routes."""
    for route in list(app.routes):
        if isinstance(route, APIRoute) and "GET" in (route.methods or ()):
            app.add_api_route(route.path, route.endpoint, methods=["HEAD"], include_in_schema=False)


def _add_middleware(app: FastAPI, settings: Settings, metrics: Metrics, pipeline: Pipeline, keys: Keyring) -> None:
    # The last added is the outermost.
    app.add_middleware(BodyGuard, max_bytes=settings.max_body_bytes, max_seconds=settings.read_seconds)
    app.add_middleware(
        Deadlines,
        default_ms=settings.request_timeout_ms,
        check=pipeline.check_inside,
        front=pipeline.front,
        metrics=metrics,
    )
    app.add_middleware(Access, keys=keys)


def _around(settings: Settings, metrics: Metrics, lifecycle: Lifecycle, tracing: Tracing | None) -> list[Middleware]:
    """Return the layers around every answer, refusals at the door too; the innermost first."""
    layers = [
        Middleware(
            RequestContext,
            metrics=metrics,
            tasks=frozenset(TASKS),
            lifecycle=lifecycle,
            tracing=tracing,
            log_texts=settings.log_texts,
        )
    ]
    if settings.cors_origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=CORS_REQUEST_HEADERS,
            expose_headers=CORS_ANSWER_HEADERS,
        )
        layers.append(cors)
    return layers


def _complete_document(app: FastAPI, keys: bool, *kinds: type[BaseModel]) -> None:
    """Add what FastAPI leaves out: schemas that routes refer to by name, as `PROBLEMS` does; that keys are needed."""
    template = "#/components/schemas/{model}"
    extra = models_json_schema([(kind, "validation") for kind in kinds], ref_template=template)[1]["$defs"]
    original = app.openapi

    def openapi() -> dict[str, Any]:
        document = original()
        document["components"]["schemas"].update(extra)
        if keys:
            document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{"key": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it


def _version() -> str:
    try:
        return version("sparselane")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0"


def _add_task_routes(app: FastAPI, pipeline: Pipeline, models: Models) -> None:
    async def answered(task: Task[Item, Parameters, Entry], body: Request[Item, Parameters]) -> HttpResponse:
        model = models.find(task.name, body.model)
        answer, stages = await pipeline.answer(task, model, body)
        return HttpResponse(answer.model_dump_json(), media_type="application/json", headers=server_timing(stages))

    def count(body: Any) -> Any:
        pipeline.check_lists(unchecked(body, "inputs"))
        return body

    counted = BeforeValidator(count)

    @app.post("/v1/question-answering", response_model=Response[Answer], responses=PROBLEMS, tags=["answers"])
    async def question_answering(body: Annotated[QuestionAnsweringRequest, counted]) -> HttpResponse:
        """Find the answers to questions in the texts that come with them."""
        return await answered(QUESTION_ANSWERING, body)

    @app.post("/v1/text-classification", response_model=Response[Label], responses=PROBLEMS, tags=["answers"])
    async def text_classification(body: Annotated[TextClassificationRequest, counted]) -> HttpResponse:
        """Label texts, for example with their sentiment."""
        return await answered(TEXT_CLASSIFICATION, body)

    @app.post("/v1/token-classification", response_model=Response[Entity], responses=PROBLEMS, tags=["answers"])
    async def token_classification(body: Annotated[TokenClassificationRequest, counted]) -> HttpResponse:
        """Find the people, places and other entities in texts."""
        return await answered(TOKEN_CLASSIFICATION, body)


def _add_operations_routes(app: FastAPI, health: Health) -> None:
    @app.get("/healthz", tags=["operations"], responses={503: {**PROBLEMS[503], "description": "Why not."}})
    async def healthz() -> dict[str, str]:
        """Say that the process works; load, and models that failed to load, never get it killed."""
        return health.live()

    @app.get("/readyz", tags=["operations"], responses={503: {**PROBLEMS[503], "description": "Why it is not ready."}})
    async def readyz() -> dict[str, object]:
        """Say whether requests should be sent here: every model loaded and proven, and the server not stopping."""
        return health.ready()

    @app.get("/metrics", tags=["operations"], response_class=HttpResponse)
    async def metrics_page() -> HttpResponse:
        """Show the metrics in Prometheus' text format."""
        return HttpResponse(health.page(), headers={"content-type": CONTENT_TYPE_LATEST})


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
