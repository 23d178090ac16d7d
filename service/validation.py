"""What pydantic and FastAPI say about a body, as our errors with JSON pointers."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fastapi.exceptions import RequestValidationError

from service.errors import FieldError, InvalidRequestError, MalformedBodyError, ServiceError, shown

# The keys under which pydantic names the limit that was broken.
LIMITS: Final = ("ge", "gt", "le", "lt", "min_length", "max_length", "expected")
# pydantic's words for these speak of Python.
NO_OBJECT: Final = ("model_type", "model_attributes_type")
# Enough to see what is wrong; a body can hold a million errors.
MOST_FIELDS: Final = 16


def translated(error: RequestValidationError) -> ServiceError:
    """Return MalformedBodyError where there is no JSON, else InvalidRequestError with the wrong fields."""
    complaints = error.errors()
    first = complaints[0]
    if first["type"] == "json_invalid":
        return MalformedBodyError(f"the body is no JSON: {first['ctx']['error']} at character {first['loc'][-1]}")
    if tuple(first["loc"]) == ("body",) and first["type"] == "missing":
        return MalformedBodyError('the body is empty; it must be JSON like {"inputs": ...}')
    fields = tuple(_field(complaint) for complaint in complaints[:MOST_FIELDS])
    return InvalidRequestError(
        "; ".join(f"{field.pointer or 'the body'}: {field.message}" for field in fields), *fields
    )


def _field(complaint: Mapping[str, Any]) -> FieldError:
    context = complaint.get("ctx", {})
    location = list(complaint["loc"][1:])
    if complaint["type"] == "unknown_field":
        return FieldError(_pointer([*location, context["field"]]), complaint["msg"])
    value = None if complaint["type"] == "missing" else shown(complaint["input"])
    limit = next((str(context[key]) for key in LIMITS if key in context), None)
    message = "Input should be a JSON object" if complaint["type"] in NO_OBJECT else complaint["msg"]
    return FieldError(_pointer(location), message, value, limit)


def _pointer(location: Sequence[int | str]) -> str:
    parts = [str(part) for part in location]
    # "one" and "many" are the tags of `schemas.OneOrMany`, no part of the body.
    if parts[:1] == ["inputs"] and parts[1:2] in (["one"], ["many"]):
        del parts[1]
    return "".join("/" + shown(part).replace("~", "~0").replace("/", "~1") for part in parts)
