"""What pydantic and FastAPI say about a body, as our errors with JSON pointers."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from service.errors import FieldError, InvalidRequestError, MalformedBodyError, ServiceError, shown

Checked = TypeVar("Checked")

EMPTY: Final = 'the body is empty; it must be JSON like {"inputs": ...}'
# The keys under which pydantic names the limit that was broken.
LIMITS: Final = ("ge", "gt", "le", "lt", "min_length", "max_length", "expected")
# pydantic's words for these speak of Python.
NO_OBJECT: Final = ("model_type", "model_attributes_type")
# Names of alternatives in `service.schemas`, which pydantic puts into locations; they are no part of the body.
ALTERNATIVES: Final = ("one", "many", "a text", "a pair")
# Enough to see what is wrong; a body can hold a million errors.
MOST_FIELDS: Final = 16


def translated(error: RequestValidationError) -> ServiceError:
    """Return MalformedBodyError where there is no JSON, else InvalidRequestError with the wrong fields."""
    complaints = error.errors()
    first = complaints[0]
    if first["type"] == "json_invalid":
        return MalformedBodyError(f"the body is no JSON: {first['ctx']['error']} at character {first['loc'][-1]}")
    if tuple(first["loc"]) == ("body",) and first["type"] == "missing":
        return MalformedBodyError(EMPTY)
    fields = tuple(_field(complaint) for complaint in complaints[:MOST_FIELDS])
    return InvalidRequestError(
        "; ".join(f"{field.pointer or 'the body'}: {field.message}" for field in fields), *fields
    )


def read_json(body: bytes) -> Any:
    """Return the JSON value that `body` is.

    Raises:
        MalformedBodyError: it is none, or nested too deeply.
    """
    if not body:
        raise MalformedBodyError.at("", EMPTY)
    try:
        return json.loads(body)
    except json.JSONDecodeError as error:
        raise MalformedBodyError.at("", f"the body is no JSON: {error.msg} at character {error.pos}") from None
    except (ValueError, RecursionError) as error:  # no UTF-8, an integer of thousands of digits; brackets in brackets
        raise MalformedBodyError.at("", f"the body is no JSON that can be read: {shown(str(error))}") from None


def unchecked(body: object, field: str) -> object:
    """Return a field of a body that nobody has looked at; None where there is none."""
    return body.get(field) if isinstance(body, dict) else None


def checked(validate: Callable[[Any], Checked], value: object, *location: str | int) -> Checked:
    """Return `validate(value)`; where pydantic refuses it, raise InvalidRequestError at `location` of the body."""
    try:
        return validate(value)
    except ValidationError as error:
        complaints = [{**complaint, "loc": ("body", *location, *complaint["loc"])} for complaint in error.errors()]
        raise translated(RequestValidationError(complaints)) from None


def _field(complaint: Mapping[str, Any]) -> FieldError:
    context = complaint.get("ctx", {})
    location = [part for part in complaint["loc"][1:] if part not in ALTERNATIVES]
    if complaint["type"] == "unknown_field":
        return FieldError(_pointer([*location, context["field"]]), complaint["msg"])
    value = None if complaint["type"] == "missing" else shown(complaint["input"])
    limit = next((str(context[key]) for key in LIMITS if key in context), None)
    message = "Input should be a JSON object" if complaint["type"] in NO_OBJECT else complaint["msg"]
    return FieldError(_pointer(location), message, value, limit)


def _pointer(location: Sequence[int | str]) -> str:
    return "".join("/" + shown(str(part)).replace("~", "~0").replace("/", "~1") for part in location)
