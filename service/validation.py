"""What pydantic and FastAPI say about a body, as our errors with JSON pointers."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from service.errors import FieldError, InvalidRequestError, MalformedBodyError, ServiceError, shown

Body = TypeVar("Body", bound=BaseModel)

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


def parsed(kind: type[Body], raw: bytes) -> Body:
    """Return the JSON `raw` as a body of `kind`: for routes where the model that is asked decides on the kind.

    Raises:
        MalformedBodyError, InvalidRequestError: as `translated` says.
    """
    if not raw:
        raise MalformedBodyError(EMPTY)
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise MalformedBodyError(f"the body is no JSON: {error}") from error
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        complaints = [{**complaint, "loc": ("body", *complaint["loc"])} for complaint in error.errors()]
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
