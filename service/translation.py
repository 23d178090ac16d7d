"""A body of another contract through the pipeline: checked, answered, and its errors at the places of that body."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from service.errors import ServiceError
from service.models import Model
from service.pipeline import Pipeline, server_timing
from service.schemas import Request, Response
from service.task import Entry, Item, Parameters, Task
from service.validation import checked

# From a JSON pointer into a typed body with a list of inputs to one into the body that the caller sent.
Place = Callable[[str], str]


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
        pipeline.check_count(len(items))
        inputs = [checked(task.item.validate_python, item, "inputs", i) for i, item in enumerate(items)]
        # Checked above, so that one wrong item has one error with its own pointer.
        request = Request[Any, Any].model_construct(inputs=inputs, model=model.name, parameters=parameters)
        answer, stages = await pipeline.answer(task, model, request)
    except ServiceError as error:
        raise moved(error, place) from error
    return answer, server_timing(stages)
