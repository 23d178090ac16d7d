"""The server's configuration: environment variables, checked once, frozen, passed in."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import StartupError, nearest

PREFIX: Final = "SPARSELANE_"
# Read by the engine itself, see docs/engine.md.
ENGINE_VARIABLES: Final = frozenset({"SPARSELANE_ISA"})
EMBEDDED_MODELS: Final = Path(__file__).parent / "models"


class Settings(BaseModel):
    """Every knob of the server; `load_settings` reads field `max_inputs` from SPARSELANE_MAX_INPUTS, and so on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: Annotated[str, Field(description="address to listen on")] = "0.0.0.0"
    port: Annotated[int, Field(ge=0, le=65535, description="port to listen on; 0 takes a free one")] = 8000
    models_dir: Annotated[Path, Field(description="folder with one artifact per subfolder")] = EMBEDDED_MODELS
    threads: Annotated[int | None, Field(ge=1, le=512, description="engine threads; unset: the cgroup's CPU quota")] = (
        None
    )
    # A few QA windows: enough to fill the vector lanes, short enough that a small request never waits long behind it.
    max_batch_tokens: Annotated[int, Field(ge=64, description="most tokens in one call of the engine")] = 1024
    max_queue_tokens: Annotated[int, Field(ge=64, description="most tokens accepted but not answered; then 503")] = (
        32768
    )
    max_body_bytes: Annotated[int, Field(ge=1024, description="largest request body")] = 2 * 1024 * 1024
    max_inputs: Annotated[int, Field(ge=1, description="most inputs in one request")] = 128
    max_text_chars: Annotated[int, Field(ge=1, description="longest text, in code points")] = 100_000
    # Load balancers learn of a stopping server late: for this long it still accepts, but /readyz already answers 503.
    notice_seconds: Annotated[
        float, Field(ge=0, description="SIGTERM: time between 503 on /readyz and no more listening")
    ] = 1
    drain_seconds: Annotated[int, Field(ge=1, description="SIGTERM: longest time for accepted requests to finish")] = 30
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Field(description="least severe log line")] = (
        "info"
    )


def load_settings(environment: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Return the settings of the environment (default: the process's) with `overrides` that are not None on top.

    Raises:
        StartupError: an unknown SPARSELANE_ variable, with the nearest name, or a value outside its limits.
    """
    names = os.environ if environment is None else environment
    known = sorted({PREFIX + name.upper() for name in Settings.model_fields} | ENGINE_VARIABLES)
    for name in names:
        if name.startswith(PREFIX) and name not in known and not _kubernetes_link(name):
            raise StartupError(f"unknown environment variable {name}{nearest(name, known)}")
    given = {field: names[PREFIX + field.upper()] for field in Settings.model_fields if PREFIX + field.upper() in names}
    try:
        return Settings(**{**given, **{name: value for name, value in overrides.items() if value is not None}})
    except ValidationError as error:
        raise StartupError("\n".join(_explained(e["loc"][0], e["msg"], e["input"]) for e in error.errors())) from None


def as_environment(given: Mapping[str, Any]) -> dict[str, str]:
    """Return values that are not None as the environment variables that `load_settings` reads them from."""
    return {PREFIX + name.upper(): str(value) for name, value in given.items() if value is not None}


def _kubernetes_link(name: str) -> bool:
    """A Service named sparselane puts SPARSELANE_SERVICE_HOST and SPARSELANE_PORT_8000_TCP into the pods around it."""
    return name.startswith((PREFIX + "SERVICE_", PREFIX + "PORT_"))


def _explained(field: int | str, message: str, value: object) -> str:
    name = PREFIX + str(field).upper()
    hint = ""
    if str(value).startswith("tcp://"):
        hint = "; Kubernetes put it there for the Service of that name: set enableServiceLinks: false in the pod"
    return f"{name} is {str(value)!r}: {message[0].lower()}{message[1:]}{hint}"
