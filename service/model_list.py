"""GET /v1/models: which models serve here, and what they are: size, sparsity, quality."""

from typing import Annotated, Any

from fastapi import FastAPI
from pydantic import Field, ValidationError

from service.models import Model, Models
from service.schemas import Output, Score

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Quality(Output):
    """What the artifact says of itself: scores on one data set of the dense model, the sparse one and this one.

    SQuAD's f1 is in percent, as its authors report it; other scores are shares of 1. null: not measured.
    """

    dataset: str
    split: str
    examples: int
    metric: str
    dense: Finite | None
    sparse: Finite | None
    quantized: Finite | None


class ModelInfo(Output):
    """One model. `default`: it answers requests of its task that name no model. null: its artifact does not say."""

    name: str
    task: str
    labels: list[str]
    default: bool
    window: Annotated[int, Field(description="tokens that the model reads at once; longer texts are read in windows")]
    sparsity: Annotated[Score | None, Field(description="share of zeros among the encoder's weights")]
    bytes: Annotated[int | None, Field(description="weights and tokenizer on disk")]
    dense_bytes: Annotated[int | None, Field(description="the same model in dense float32")]
    layers: int | None
    hidden: int | None
    quality: Quality | None
    isa: Annotated[str | None, Field(description="instruction set of the kernels that run")]
    threads: int | None


class ModelList(Output):
    """The models that serve, by name."""

    models: list[ModelInfo]


def add_model_routes(app: FastAPI, models: Models) -> None:
    """Add GET /v1/models."""

    @app.get("/v1/models", tags=["models"])
    async def list_models() -> ModelList:
        """List the models that serve, with their size, sparsity and quality."""
        serving = sorted(models.serving.values(), key=lambda model: model.name)
        return ModelList(models=[_info(model, models.default(model.task) is model) for model in serving])


def _info(model: Model, default: bool) -> ModelInfo:
    threads = model.details.get("threads", "")
    return ModelInfo(
        name=model.name,
        task=model.task,
        labels=list(model.labels),
        default=default,
        window=model.windows.length,
        isa=model.details.get("isa"),
        threads=int(threads) if threads.isdecimal() else None,
        **_of_the_artifact(model),
    )


def _of_the_artifact(model: Model) -> dict[str, Any]:
    manifest = model.manifest
    if manifest is None:
        return dict.fromkeys(("sparsity", "bytes", "dense_bytes", "layers", "hidden", "quality"))
    dense = manifest.size.get("dense_fp32_bytes")
    return {
        "sparsity": manifest.sparsity["overall"],
        "bytes": sum(manifest.files[name]["bytes"] for name in ("model.safetensors", "tokenizer.json")),
        "dense_bytes": dense if isinstance(dense, int) else None,
        "layers": manifest.architecture.layers,
        "hidden": manifest.architecture.hidden,
        "quality": _quality(manifest.quality),
    }


def _quality(section: Any) -> Quality | None:
    """Read the one section of a manifest that the engine does not check; what cannot be read is not shown."""
    try:
        return Quality.model_validate(section)
    except ValidationError:
        return None
