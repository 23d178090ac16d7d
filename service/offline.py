"""A file of inputs to a file of answers, by the server's own pipeline: the answers are the server's."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from pydantic import ValidationError

from service.errors import InvalidRequestError, OverloadedError, StartupError, TooLargeError
from service.metrics import Metrics
from service.models import Model, Models
from service.part_file import PartFile, Record, finish
from service.pipeline import TASKS, Pipeline
from service.progress import RunProgress
from service.rows import FORMS, Form, Row, form_of
from service.schemas import Request
from service.settings import Settings
from service.validation import ALTERNATIVES

# Enough to fill a batch of short texts, and to tokenize while the engine runs.
ROWS_IN_FLIGHT: Final = 32
# Only rows of many thousand tokens each fill the queue; then those in it go first.
WAIT_SECONDS: Final = 0.02


class BadRowError(Exception):
    """A row has no answer, and the run was to stop at the first such; `line` is where it begins."""

    def __init__(self, record: Record) -> None:
        """Say which and why."""
        super().__init__(f"line {record['line']}: {record['error']}")


def skip_done(rows: Iterator[Row], part: PartFile) -> None:
    """Read `rows` up to the last one that `part` has.

    Raises:
        StartupError: they are not the rows that it has.
    """
    while part.line:
        row = next(rows, None)
        if row is None or row.line > part.line or (row.line == part.line and row.check != part.check):
            message = f"the input up to line {part.line} is not the one that {part.path} has answers to"
            raise StartupError(f"{message}: give the former input, or delete that file to begin anew")
        if row.line == part.line:
            return


def answer_all(
    settings: Settings,
    model: Model,
    parameters: Any,
    rows: Iterator[Row],
    *,
    strict: bool,
    take: Callable[[Row, Record], None],
) -> None:
    """Answer `rows`, several at once, and hand each record to `take` in the order of the rows.

    A record has `line`, `check`, `carried` and `results`, or `error` for a row that a server would refuse.

    Raises:
        BadRowError: such a row, where `strict`. EngineFailedError: a defect of ours.
    """

    async def run() -> None:
        pipeline = Pipeline(settings, Metrics(Models({model.name: model}, {}), TASKS))
        pipeline.start()
        try:
            async for row, record in _records(pipeline, model, parameters, rows):
                if strict and "error" in record:
                    raise BadRowError(record)
                take(row, record)
        finally:
            await pipeline.close()

    asyncio.run(run())


def answer_to_files(
    settings: Settings,
    model: Model,
    parameters: Any,
    rows: Iterator[Row],
    strict: bool,
    output: Path,
    errors: Path | None,
    form: Form,
    total: int | None,
) -> str:
    """Answer `rows` into `output`, bad ones into `errors`, and go on where an earlier run stopped; say what was done.

    `form` is the output's where its name does not say; `total` are the input's bytes, for the progress bar.

    Raises:
        StartupError: the earlier run was another one. BadRowError, EngineFailedError: see `answer_all`.
    """
    run = {"model": model.name, "weights": model.details.get("sha256"), "parameters": parameters.model_dump()}
    part = PartFile(output.with_name(output.name + ".part"), run)
    before, began = part.done, perf_counter()
    try:
        skip_done(rows, part)
        with RunProgress(part, total) as progress:

            def take(row: Row, record: Record) -> None:
                part.append(record)
                progress.reached(row)

            answer_all(settings, model, parameters, rows, strict=strict, take=take)
    finally:
        part.close()
    bad = errors or output.with_name(output.name + ".errors.ndjson")
    finish(part, output, bad, form_of(output, None if output.suffix.lower() in FORMS else form))
    seconds = perf_counter() - began
    speed = f"{part.done - before:,} rows in {seconds:.1f} s ({(part.done - before) / seconds:,.1f} a second)"
    resumed = f"; {before:,} were there" if before else ""
    failed = f"; {part.failed:,} bad rows, see {bad}" if part.failed else ""
    return f"{speed}{resumed}{failed}"


async def _records(
    pipeline: Pipeline, model: Model, parameters: Any, rows: Iterator[Row]
) -> AsyncIterator[tuple[Row, Record]]:
    pending: deque[tuple[Row, asyncio.Task[Record]]] = deque()
    # In a thread: a pipe may keep us waiting while answers are due.
    following = asyncio.ensure_future(asyncio.to_thread(next, rows, None))
    try:
        while (row := await following) is not None or pending:
            if row is not None:
                pending.append((row, asyncio.create_task(_record(pipeline, model, parameters, row))))
                following = asyncio.ensure_future(asyncio.to_thread(next, rows, None))
            while pending and (row is None or len(pending) >= ROWS_IN_FLIGHT or pending[0][1].done()):
                first, answer = pending.popleft()
                yield first, await answer
    finally:
        for _, task in pending:
            task.cancel()
        await asyncio.gather(*(task for _, task in pending), return_exceptions=True)


async def _record(pipeline: Pipeline, model: Model, parameters: Any, row: Row) -> Record:
    about = {"line": row.line, "check": row.check}
    if row.wrong is not None:
        return {**about, "error": row.wrong}
    task = TASKS[model.task]
    try:
        item = task.item.validate_python(row.item)
    except ValidationError as error:
        return {**about, "error": explained(error)}
    request: Request[Any, Any] = Request.model_construct(inputs=item, parameters=parameters)
    while True:
        try:
            answer, _ = await pipeline.answer(task, model, request)
        except OverloadedError:
            await asyncio.sleep(WAIT_SECONDS)
        except (InvalidRequestError, TooLargeError) as error:
            return {**about, "error": error.detail}
        else:
            results = [entry.model_dump() for entry in answer.results[0]]
            return {**about, "carried": dict(row.carried), "results": results}


def explained(error: ValidationError) -> str:
    """Return what pydantic says of a value as one line."""
    places = [".".join(str(part) for part in e["loc"] if part not in ALTERNATIVES) for e in error.errors()]
    return "; ".join(f"{place or 'input'}: {e['msg']}" for place, e in zip(places, error.errors(), strict=True))
