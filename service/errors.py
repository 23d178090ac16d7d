"""What can go wrong for a caller, and its one mapping to HTTP.

ServiceError
├── MalformedBodyError          the body is no JSON
├── UnsupportedMediaTypeError   the body does not say that it is JSON
├── SlowClientError             the body did not arrive in time
├── TooLargeError               over one of the limits in Settings
├── InvalidRequestError         well-formed, but a field or parameter is wrong
├── UnknownModelError           no such model here
├── UnauthorizedError           no key, or one that is unknown here
├── ForbiddenError              a key that may not do this
├── QuotaExceededError          the key's tokens are used up; later it will work
├── ModelRefusedError           a model was not replaced: what is in the models folder cannot serve
├── OverloadedError             it could not be answered in time, or the queue is full; later it will work
├── DeadlineError               it was accepted, but its time is over
├── NotReadyError               a model failed to load, or the server is stopping
├── ClientGoneError             nobody waits for the answer any more
└── EngineFailedError           a defect of ours

StartupError is the other tree, of one: the command cannot start; it never reaches a client.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType
from typing import Final, Self

# Values in error bodies are cut to this many characters: enough to recognise, too few to copy a document back.
SHOWN_CHARACTERS: Final = 80

# The exit code of a command that could not start, as for wrong arguments.
CANNOT_START: Final = 2


class StartupError(Exception):
    """The command cannot start; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class FieldError:
    """One wrong field: `pointer` is a JSON pointer (RFC 6901) into the body, `value` and `limit` are for people."""

    pointer: str
    message: str
    value: str | None = None
    limit: str | None = None


class ServiceError(Exception):
    """A request that gets no answer. `fields` names what was wrong; `retry_after` is in seconds."""

    def __init__(self, detail: str, *fields: FieldError, retry_after: int | None = None) -> None:
        """Keep what the error body shows."""
        super().__init__(detail)
        self.detail = detail
        self.fields = fields
        self.retry_after = retry_after

    @classmethod
    def at(cls, pointer: str, message: str, *, value: object = None, limit: object = None) -> Self:
        """Return the error of one field; its detail is the message with the pointer before it."""
        wrong = FieldError(
            pointer, message, None if value is None else shown(value), None if limit is None else str(limit)
        )
        return cls(f"{pointer}: {message}" if pointer else message, wrong)


class MalformedBodyError(ServiceError):
    """The body is no JSON."""


class UnsupportedMediaTypeError(ServiceError):
    """The body does not say that it is JSON."""


class SlowClientError(ServiceError):
    """The body did not arrive in time."""


class TooLargeError(ServiceError):
    """Over one of the limits in Settings."""


class InvalidRequestError(ServiceError):
    """Well-formed, but a field or a parameter is wrong."""


class UnknownModelError(ServiceError):
    """No such model here."""


class UnauthorizedError(ServiceError):
    """No key, or one that is unknown here."""


class ForbiddenError(ServiceError):
    """A key that may not do this."""


class QuotaExceededError(ServiceError):
    """The key's tokens are used up; the same request will work later."""


class ModelRefusedError(ServiceError):
    """A model was not replaced: what is in the models folder cannot serve."""


class OverloadedError(ServiceError):
    """It could not be answered in time, or the queue is full; the same request will work later."""


class DeadlineError(ServiceError):
    """It was accepted, but its time is over."""


class NotReadyError(ServiceError):
    """A model failed to load, or the server is stopping."""


class ClientGoneError(ServiceError):
    """Nobody waits for the answer any more."""


class EngineFailedError(ServiceError):
    """The engine raised on an input that we had checked: a defect of ours."""


@dataclass(frozen=True)
class HttpMeaning:
    """How a kind of error looks to clients: status and title of the problem body, outcome in the metrics, headers."""

    status: int
    title: str
    outcome: str
    headers: Mapping[str, str] = field(default_factory=dict)


HTTP: Final[Mapping[type[ServiceError], HttpMeaning]] = MappingProxyType(
    {
        MalformedBodyError: HttpMeaning(400, "Malformed body", "invalid"),
        UnsupportedMediaTypeError: HttpMeaning(415, "Unsupported media type", "invalid"),
        SlowClientError: HttpMeaning(408, "Request timeout", "slow_client"),
        TooLargeError: HttpMeaning(413, "Too large", "invalid"),
        InvalidRequestError: HttpMeaning(422, "Invalid request", "invalid"),
        UnknownModelError: HttpMeaning(404, "Unknown model", "invalid"),
        # RFC 9110, 15.5.2: a 401 must say which scheme would do.
        UnauthorizedError: HttpMeaning(
            401, "Unauthorized", "unauthorized", {"www-authenticate": 'Bearer realm="sparselane"'}
        ),
        ForbiddenError: HttpMeaning(403, "Forbidden", "unauthorized"),
        QuotaExceededError: HttpMeaning(429, "Quota exceeded", "quota"),
        ModelRefusedError: HttpMeaning(409, "Model refused", "invalid"),
        OverloadedError: HttpMeaning(503, "Overloaded", "overloaded"),
        DeadlineError: HttpMeaning(504, "Deadline passed", "timeout"),
        NotReadyError: HttpMeaning(503, "Not ready", "unavailable"),
        # nginx's number for it; only logs and metrics ever see it.
        ClientGoneError: HttpMeaning(499, "Client gone", "cancelled"),
        EngineFailedError: HttpMeaning(500, "Internal error", "error"),
    }
)


def meaning(error: ServiceError) -> HttpMeaning:
    """Return what the error means over HTTP."""
    return HTTP[type(error)]


def problem(
    status: int, title: str, detail: str, request_id: str, fields: tuple[FieldError, ...] = ()
) -> dict[str, object]:
    """Return the RFC 9457 body; `error` repeats the detail for clients of Hugging Face's or KServe's bodies."""
    body: dict[str, object] = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": detail,
        "error": detail,
        "request_id": request_id,
    }
    if fields:
        body["errors"] = [{k: v for k, v in vars(wrong).items() if v is not None} for wrong in fields]
    return body


def shown(value: object) -> str:
    """Return a caller's value, JSON unless it is a string, as short text that can always be encoded."""
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=repr)
    except RecursionError:  # it could just be read
        text = "(nested too deeply)"
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}… ({len(text)} characters)"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the known name nearest to `name`, or nothing when none is near."""
    # A caller's name can be as long as a body, and comparing it takes as long.
    close = get_close_matches(name[:SHOWN_CHARACTERS], list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" as above, or the list of all known names when none is near."""
    names = list(known)
    return did_you_mean(name, names) or f"; known: {', '.join(names) or 'none'}"
