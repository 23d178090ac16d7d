"""A body of another contract through the pipeline: checked, answered, and its errors at the places of that body."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from service.errors import MalformedBodyError, ServiceError, shown
from service.models import Model
from service.pipeline import Pipeline
from service.schemas import Request, Response
from service.task import Entry, Item, Parameters, Task
from service.validation import translated

Checked = TypeVar("Checked")

# From a JSON pointer into a typed body with a list of inputs to one into the body that the caller sent.
Place = Callable[[str], str]


def read_json(body: bytes) -> Any:
    """Return the JSON value that `body` is.

    Raises:
        MalformedBodyError: it is none, or nested too deeply.
    """
    try:
        return json.loads(body)
    except json.JSONDecodeError as error:
        raise MalformedBodyError.at("", f"the body is no JSON: {error.msg} at character {error.pos}") from None
    except (ValueError, RecursionError) as error:  # no UTF-8, an integer of thousands of digits; brackets in brackets
        raise MalformedBodyError.at("", f"the body is no JSON that can be read: {shown(str(error))}") from None


def checked(validate: Callable[[Any], Checked], value: object, *location: str | int) -> Checked:
    """Return `validate(value)`; where pydantic refuses it, raise InvalidRequestError at `location` of the body."""
    try:
        return validate(value)
    except ValidationError as error:
        # "one" and "many" are the tags of `schemas.OneOrMany`, no part of the body.
        complaints = [
            {**found, "loc": ("body", *location, *(part for part in found["loc"] if part not in ("one", "many")))}
            for found in error.errors()
        ]
        raise translated(RequestValidationError(complaints)) from None


def moved(error: ServiceError, place: Place) -> ServiceError:
    """Return the same error with every pointer, in the detail too, put through `place`."""
    if not error.fields:
        return error
    fields = tuple(replace(field, pointer=place(field.pointer)) for field in error.fields)
    detail = "; ".join(f"{field.pointer}: {field.message}" if field.pointer else field.message for field in fields)
    return type(error)(detail, *fields, retry_after=error.retry_after)


async def ask(
    pipeline: Pipeline,
    task: Task[Item, Parameters, Entry],
    model: Model,
    items: Sequence[object],
    parameters: Parameters,
    place: Place,
) -> tuple[Response[Entry], dict[str, str]]:
    """Check `items`, answer them as one request, and return the answer and the headers that go with it.

    Raises:
        ServiceError: as `Pipeline.answer`, and InvalidRequestError for an item; pointers are put through `place`.
    """
    try:
        inputs = [checked(task.item.validate_python, item, "inputs", i) for i, item in enumerate(items)]
        # Checked above, so that one wrong item has one error with its own pointer.
        request = Request[Any, Any].model_construct(inputs=inputs, model=model.name, parameters=parameters)
        answer, stages = await pipeline.answer(task, model, request)
    except ServiceError as error:
        raise moved(error, place) from error
    timing = ", ".join(f"{stage};dur={seconds * 1e3:.2f}" for stage, seconds in stages.items())
    return answer, {"server-timing": timing}
