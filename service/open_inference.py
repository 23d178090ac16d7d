"""The Open Inference Protocol v2 (KServe, Triton): the routes under /v2, and an inference request's way.

github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md, with the extensions for binary
tensors (service/tensors.py), a model's configuration and the repository's index. Texts go in as BYTES, or token ids as
INT64 or INT32.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi import Response as HttpResponse

from service import deepsparse
from service.documentation import PROBLEMS, documented_answer, documented_body
from service.errors import InvalidRequestError, NotReadyError, UnknownModelError, nearest, shown
from service.health import Health
from service.model_tensors import configured, described, read_inputs
from service.models import Model, Models
from service.pipeline import Pipeline
from service.tensors import InferRequest, InferResponse, binary_parts, split, written
from service.translation import ask
from service.validation import checked, read_json

# Models have no versions here; this one is always meant, for clients that must name one.
ONLY_VERSION: Final = "1"
EXTENSIONS: Final = ("binary_tensor_data", "model_configuration", "model_repository(index)")
PLATFORM: Final = "sparselane"

# Request parameters that are not the task's: how outputs are written, and what MLServer's clients add.
ABOUT_THE_MESSAGE: Final = frozenset({"binary_data_output", "content_type"})
TENSOR_PARAMETERS: Final = frozenset({"binary_data_size", "content_type"})
OUTPUT_PARAMETERS: Final = frozenset({"binary_data", "content_type"})
# What Triton's client can send and means something else here.
INSTEAD: Final[Mapping[str, str]] = MappingProxyType(
    {
        "timeout": "send the header X-Request-Timeout-Ms, in milliseconds",
        "priority": "send the header X-Priority: batch for work that can wait",
        "classification": "ask for the output 'output', or set the parameter top_k",
    }
)


async def infer(pipeline: Pipeline, model: Model, asked: InferRequest, binary: bytes) -> HttpResponse:
    """Answer a request.

    Raises:
        ServiceError: as `Pipeline.answer`; InvalidRequestError for tensors, outputs or parameters that do not fit.
    """
    _check_known(asked)
    work = read_inputs(model, asked.inputs, binary_parts(asked.inputs, binary), pipeline.check_count)
    wanted = _wanted(asked, work.outputs)
    given = {name: value for name, value in (asked.parameters or {}).items() if name not in ABOUT_THE_MESSAGE}
    parameters = checked(work.task.parameters.model_validate, given, "parameters")
    response, headers = await ask(pipeline, work.task, model, work.items, parameters, work.place)
    body = InferResponse(
        model_name=model.name,
        model_version=ONLY_VERSION,
        id=asked.id,
        parameters=response.usage.model_dump(include={"tokens", "windows"}),
        outputs=[],
    )
    content, head = written(body, [work.outputs[name](response) for name in wanted], list(wanted.values()))
    if head is None:
        return HttpResponse(content, media_type="application/json", headers=headers)
    headers["inference-header-content-length"] = str(head)
    return HttpResponse(content, media_type="application/octet-stream", headers=headers)


def _wanted(asked: InferRequest, known: Mapping[str, object]) -> dict[str, bool]:
    """Return the outputs to write, all where none is named, and whether each is to be binary."""
    default = _flag((asked.parameters or {}).get("binary_data_output"), "/parameters/binary_data_output")
    if not asked.outputs:
        return dict.fromkeys(known, default)
    wanted: dict[str, bool] = {}
    for i, output in enumerate(asked.outputs):
        if output.name not in known:
            message = f"there is no such output{nearest(output.name, known)}"
            raise InvalidRequestError.at(f"/outputs/{i}/name", message, value=output.name)
        if output.name in wanted:
            raise InvalidRequestError.at(f"/outputs/{i}/name", "it is named twice", value=output.name)
        given = (output.parameters or {}).get("binary_data", default)
        wanted[output.name] = _flag(given, f"/outputs/{i}/parameters/binary_data")
    return wanted


def _flag(value: object, pointer: str) -> bool:
    if value is not None and not isinstance(value, bool):
        raise InvalidRequestError.at(pointer, "it must be true or false", value=value)
    return bool(value)


def _check_known(asked: InferRequest) -> None:
    """Refuse parameters of tensors that would be ignored, and those of requests that have another name here."""
    _check_parameters(asked.parameters, "", None)
    for i, tensor in enumerate(asked.inputs):
        _check_parameters(tensor.parameters, f"/inputs/{i}", TENSOR_PARAMETERS)
    for i, output in enumerate(asked.outputs or ()):
        _check_parameters(output.parameters, f"/outputs/{i}", OUTPUT_PARAMETERS)


def _check_parameters(given: Mapping[str, Any] | None, pointer: str, known: frozenset[str] | None) -> None:
    for name, value in (given or {}).items():
        if name in INSTEAD or (known is not None and name not in known):
            message = INSTEAD.get(name) or f"there is no such parameter here{nearest(name, sorted(known or ()))}"
            where = shown(name).replace("~", "~0").replace("/", "~1")
            raise InvalidRequestError.at(f"{pointer}/parameters/{where}", message, value=value)


def add_open_inference_routes(app: FastAPI, pipeline: Pipeline, models: Models, health: Health) -> None:
    """Add the routes under /v2."""
    _add_server_routes(app, models, health)
    _add_model_routes(app, models)
    documented = documented_body(InferRequest, *deepsparse.BODIES)
    answers = documented_answer(InferResponse, *deepsparse.ANSWERS)
    answers["content"]["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    responses: dict[int | str, dict[str, Any]] = {**PROBLEMS, 200: answers}

    @app.post("/v2/models/{name}/infer", openapi_extra=documented, responses=responses, tags=["open inference"])
    @app.post(
        "/v2/models/{name}/versions/{version}/infer",
        openapi_extra=documented,
        responses=responses,
        tags=["open inference"],
    )
    async def infer_with(name: str, request: HttpRequest, version: str = ONLY_VERSION) -> HttpResponse:
        """Answer tensors of texts or of token ids, or a body of DeepSparse."""
        model = _find(models, name, version)
        request.state.task, request.state.model = model.task, model.name
        head, binary = split(await request.body(), request.headers.get("inference-header-content-length"))
        body = read_json(head)
        if deepsparse.is_deepsparse(body):
            return await deepsparse.answer(pipeline, model, body)
        return await infer(pipeline, model, checked(InferRequest.model_validate, body), binary)


def _add_server_routes(app: FastAPI, models: Models, health: Health) -> None:
    @app.get("/v2/", include_in_schema=False)
    @app.get("/v2", tags=["open inference"])
    async def server() -> dict[str, object]:
        """Name the server and the extensions of the protocol that it has."""
        return {"name": app.title, "version": app.version, "extensions": list(EXTENSIONS)}

    @app.get("/v2/health/live", tags=["open inference"], responses={503: PROBLEMS[503]})
    async def live() -> dict[str, bool]:
        """Say that the process works, as /healthz does."""
        health.live()
        return {"live": True}

    @app.get("/v2/health/ready", tags=["open inference"], responses={503: PROBLEMS[503]})
    async def ready() -> dict[str, bool]:
        """Say whether requests should be sent here, as /readyz does."""
        health.ready()
        return {"ready": True}

    @app.get("/v2/models", tags=["open inference"])
    async def names() -> dict[str, list[str]]:
        """Name the models that serve."""
        return {"models": sorted(models.serving)}

    @app.post("/v2/repository/index", responses={413: PROBLEMS[413]}, tags=["open inference"])
    async def index() -> list[dict[str, str]]:
        """List all models, those that failed to load with the reason; the request's body is not read."""
        found = dict.fromkeys(models.serving, ("READY", ""))
        found |= {name: ("UNAVAILABLE", why) for name, why in models.why_not.items()}
        return [
            {"name": name, "version": ONLY_VERSION, "state": state, "reason": why}
            for name, (state, why) in sorted(found.items())
        ]


def _add_model_routes(app: FastAPI, models: Models) -> None:
    missing: dict[int | str, dict[str, Any]] = {404: PROBLEMS[404]}

    @app.get("/v2/models/{name}", responses=missing, tags=["open inference"])
    @app.get("/v2/models/{name}/versions/{version}", responses=missing, tags=["open inference"])
    async def model_metadata(name: str, version: str = ONLY_VERSION) -> dict[str, object]:
        """Describe a model's tensors: those of texts and those of token ids; a request has one of the two kinds."""
        model = _find(models, name, version)
        return {"name": model.name, "versions": [ONLY_VERSION], "platform": PLATFORM, **described(model)}

    @app.get("/v2/models/{name}/config", responses=missing, tags=["open inference"])
    @app.get("/v2/models/{name}/versions/{version}/config", responses=missing, tags=["open inference"])
    async def model_config(name: str, version: str = ONLY_VERSION) -> dict[str, object]:
        """Describe a model's tensors as Triton's configuration does: `get_model_config` of its client reads it."""
        model = _find(models, name, version)
        # 0: the shapes are whole, the number of inputs is their first dimension.
        return {"name": model.name, "platform": PLATFORM, "max_batch_size": 0, **configured(model)}

    @app.get("/v2/models/{name}/ready", responses={**missing, 503: PROBLEMS[503]}, tags=["open inference"])
    @app.get(
        "/v2/models/{name}/versions/{version}/ready",
        responses={**missing, 503: PROBLEMS[503]},
        tags=["open inference"],
    )
    async def model_ready(name: str, version: str = ONLY_VERSION) -> dict[str, object]:
        """Say whether a model serves."""
        if why := models.why_not.get(name):
            raise NotReadyError.at("", f"{name}: {why}")
        return {"name": _find(models, name, version).name, "ready": True}


def _find(models: Models, name: str, version: str) -> Model:
    try:
        model = models.named(name)
    except UnknownModelError as error:
        # The name is in the path, not in the body.
        raise UnknownModelError.at("", error.fields[0].message, value=name) from None
    if version != ONLY_VERSION:
        message = f"models have one version here, '{ONLY_VERSION}'; leave it out or name that one"
        raise UnknownModelError.at("", message, value=version)
    return model
