"""The server's configuration: a file, environment variables over it, checked once, frozen, passed in."""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from service.errors import StartupError, nearest

PREFIX: Final = "SPARSELANE_"
CONFIG: Final = "SPARSELANE_CONFIG"
# Read by the engine itself, see docs/engine.md.
ENGINE_VARIABLES: Final = frozenset({"SPARSELANE_ISA"})
EMBEDDED_MODELS: Final = Path(__file__).parent / "models"


def _listed(value: object) -> object:
    """A list in the environment has commas."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Origin = Annotated[str, Field(pattern=r"^(\*|https?://[^/\s]+)$")]


class Settings(BaseModel):
    """Every knob of the server; `load_settings` reads field `max_inputs` from SPARSELANE_MAX_INPUTS, and so on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: Annotated[str, Field(description="address to listen on")] = "0.0.0.0"
    port: Annotated[int, Field(ge=0, le=65535, description="port to listen on; 0 takes a free one")] = 8000
    probe_port: Annotated[
        int,
        Field(ge=0, le=65535, description="port of probes and metrics, with a thread of its own; 0 takes a free one"),
    ] = 9090
    models_dir: Annotated[Path, Field(description="folder with one artifact per subfolder")] = EMBEDDED_MODELS
    # Two of the embedded models label texts, and "sentiment" was there first.
    default_models: Annotated[
        tuple[str, ...],
        BeforeValidator(_listed),
        Field(description="models for requests that name none, with commas between them; of others the first by name"),
    ] = ("sentiment",)
    threads: Annotated[
        int | None,
        Field(ge=1, le=256, description="engine threads, no more than CPUs; unset: the affinity mask cut to the quota"),
    ] = None
    # A few QA windows: enough to fill the vector lanes, short enough that a small request never waits long behind it.
    max_batch_tokens: Annotated[int, Field(ge=64, description="most tokens in one call of the engine")] = 1024
    max_queue_tokens: Annotated[int, Field(ge=64, description="most tokens accepted but not answered; then 503")] = (
        32768
    )
    max_body_bytes: Annotated[int, Field(ge=1024, description="largest request body")] = 2 * 1024 * 1024
    max_inputs: Annotated[int, Field(ge=1, description="most inputs in one request")] = 128
    max_text_chars: Annotated[int, Field(ge=1, description="longest text, in code points")] = 100_000
    # Uploads of the largest body over a slow line, and no more: whoever takes longer holds memory for nothing.
    read_seconds: Annotated[
        float,
        Field(
            gt=0,
            description="longest time for a client to send head or body, then 408; or to read nothing of an answer",
        ),
    ] = 30
    # Shorter than the drain, so that a stop cuts nothing; longer than anybody looks at a page that does not come.
    request_timeout_ms: Annotated[
        int,
        Field(
            ge=1, le=600_000, description="time for an answer where X-Request-Timeout-Ms does not say; then 503 or 504"
        ),
    ] = 10_000
    # Load balancers learn of a stopping server late: for this long it still accepts, but /readyz already answers 503.
    notice_seconds: Annotated[
        float, Field(ge=0, description="SIGTERM: time between 503 on /readyz and no more listening")
    ] = 1
    drain_seconds: Annotated[int, Field(ge=1, description="SIGTERM: longest time for accepted requests to finish")] = 30
    keys_file: Annotated[Path | None, Field(description="who may call, see Keys; unset: everybody")] = None
    cors_origins: Annotated[
        tuple[Origin, ...],
        BeforeValidator(_listed),
        Field(description="origins whose pages may call, with commas between them, or `*`"),
    ] = ()
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Field(description="least severe log line")] = (
        "info"
    )
    log_format: Annotated[Literal["plain", "json"], Field(description="lines for people, or one object per line")] = (
        "plain"
    )
    log_texts: Annotated[bool, Field(description="log the callers' texts too")] = False
    otlp_endpoint: Annotated[
        str | None, Field(pattern=r"^https?://[^\s?]+$", description="where spans go, see Traces; unset: nowhere")
    ] = None


def load_settings(environment: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Return the settings of a file, with the environment (default: the process's) and then `overrides` on top.

    The file is the override `config`, else SPARSELANE_CONFIG, else none: TOML, a field's name and its value per line.
    Overrides that are None do not count.

    Raises:
        StartupError: the file cannot be read, an unknown name in it or with SPARSELANE_ before it in the environment
            (the message has the nearest known one), or a value outside its limits.
    """
    names = os.environ if environment is None else environment
    chosen = {name: value for name, value in overrides.items() if value is not None}
    config = chosen.pop("config", None) or names.get(CONFIG)
    written = _read_file(Path(config)) if config else {}
    given = {**written, **_read_environment(names), **chosen}
    try:
        return Settings(**given)
    except ValidationError as error:
        # A wrong element of a list is as wrong as its list: name the field.
        fields = {str(e["loc"][0]): e for e in reversed(error.errors())}
        in_file = {name for name in written if name not in chosen and PREFIX + name.upper() not in names}
        raise StartupError(
            "\n".join(
                _explained(f"{name} in {config}" if name in in_file else PREFIX + name.upper(), e["msg"], given[name])
                for name, e in reversed(fields.items())
            )
        ) from None


def _read_file(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StartupError(f"the settings file {path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # no UTF-8, no TOML
        raise StartupError(f"the settings file {path} is no TOML: {error}") from None
    for name in values:
        if name not in Settings.model_fields:
            raise StartupError(f"unknown setting {name} in {path}{nearest(name, Settings.model_fields)}")
    return values


def _read_environment(names: Mapping[str, str]) -> dict[str, str]:
    known = sorted({PREFIX + name.upper() for name in Settings.model_fields} | ENGINE_VARIABLES | {CONFIG})
    for name in names:
        if name.startswith(PREFIX) and name not in known and not _kubernetes_link(name):
            raise StartupError(f"unknown environment variable {name}{nearest(name, known)}")
    return {field: names[PREFIX + field.upper()] for field in Settings.model_fields if PREFIX + field.upper() in names}


def as_environment(given: Mapping[str, Any]) -> dict[str, str]:
    """Return values that are not None as the environment variables that `load_settings` reads them from."""
    return {PREFIX + name.upper(): str(value) for name, value in given.items() if value is not None}


def shown_settings(settings: Settings) -> dict[str, Any]:
    """Return every setting for the log, with what may be secret masked."""
    return {name: masked(value) for name, value in settings.model_dump(mode="json").items()}


def masked(value: Any) -> Any:
    """Return the value; of a URL's user, password and query nothing is left but `***`."""
    if not isinstance(value, str) or "://" not in value:
        return value
    return re.sub(r"\?.*", "?***", re.sub(r"://[^/?]*@", "://***@", value))


def _kubernetes_link(name: str) -> bool:
    """A Service named sparselane puts SPARSELANE_SERVICE_HOST and SPARSELANE_PORT_8000_TCP into the pods around it."""
    return name.startswith((PREFIX + "SERVICE_", PREFIX + "PORT_"))


def _explained(name: str, message: str, value: object) -> str:
    hint = ""
    if str(value).startswith("tcp://"):
        hint = "; Kubernetes put it there for the Service of that name: set enableServiceLinks: false in the pod"
    return f"{name} is {str(masked(value))!r}: {message[0].lower()}{message[1:]}{hint}"
