"""A request's way: check, tokenize, wait and infer, make the answer; off the event loop wherever it takes time."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from types import MappingProxyType
from typing import Any, Final, TypeVar

from service.batcher import Batcher, forward
from service.errors import TooLargeError
from service.metrics import Metrics
from service.models import Model
from service.question_answering import QUESTION_ANSWERING
from service.schemas import QuestionInput, Request, Response, Usage
from service.settings import Settings
from service.task import Entry, Item, Parameters, Task
from service.text_classification import TEXT_CLASSIFICATION
from service.token_classification import TOKEN_CLASSIFICATION
from service.windows import Encoded, Floats

TASKS: Final[Mapping[str, Task[Any, Any, Any]]] = MappingProxyType(
    {task.name: task for task in (QUESTION_ANSWERING, TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION)}
)
# Tokenizing is about 2 % of the work; two threads, so that one long text does not hold up every short one.
TEXT_THREADS: Final = 2

Result = TypeVar("Result")


class Pipeline:
    """Answers requests: texts in `TEXT_THREADS` threads, the engine behind a Batcher."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Make the queue and the threads; nothing runs before `start`."""
        self._settings = settings
        self._metrics = metrics
        self._batcher = Batcher(settings.max_batch_tokens, settings.max_queue_tokens, metrics)
        self._texts = ThreadPoolExecutor(TEXT_THREADS, "text")

    def start(self) -> None:
        """Begin to answer; needs a running event loop."""
        self._batcher.start()

    async def close(self) -> None:
        """Finish what was admitted, then stop all threads."""
        await self._batcher.close()
        self._texts.shutdown()

    async def answer(
        self, task: Task[Item, Parameters, Entry], model: Model, request: Request[Item, Parameters]
    ) -> tuple[Response[Entry], dict[str, float]]:
        """Return the answer to a checked request, and the seconds that each stage took.

        Raises:
            TooLargeError, InvalidRequestError: more than the settings or the model allow.
            OverloadedError: no room in the queue now. EngineFailedError: the engine raised.
        """
        items, pointers = request.items(), request.pointers()
        self._check_limits(items, pointers)
        self._batcher.check_room(1)
        began = perf_counter()
        encoded = await self._off_loop(encode_all, task, model, items, request.parameters, pointers)
        tokenized = perf_counter()
        inferred = await self._batcher.infer(model, [window for input_ in encoded for window in input_.windows])
        done = perf_counter()
        results = await self._off_loop(decode_all, task, model, items, encoded, inferred.logits, request.parameters)
        stages = {
            "tokenize": tokenized - began,
            "queue": inferred.queue_seconds,
            "infer": inferred.infer_seconds,
            "post": perf_counter() - done,
        }
        for stage, seconds in stages.items():
            self._metrics.stage_seconds.labels(task.name, model.name, stage).observe(seconds)
        return Response(model=model.name, results=results, usage=usage(encoded)), stages

    def _check_limits(self, items: Sequence[Item], pointers: Sequence[str]) -> None:
        most, longest = self._settings.max_inputs, self._settings.max_text_chars
        if len(items) > most:
            message = f"there are {len(items)} inputs, at most {most} are allowed: send more requests"
            raise TooLargeError.at("/inputs", message, value=len(items), limit=most)
        for item, pointer in zip(items, pointers, strict=True):
            for where, text in texts(item, pointer):
                if len(text) > longest:
                    message = f"the text has {len(text)} characters, at most {longest} are allowed: split it"
                    raise TooLargeError.at(where, message, value=len(text), limit=longest)

    async def _off_loop(self, work: Callable[..., Result], *arguments: object) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._texts, work, *arguments)


def texts(item: object, pointer: str) -> list[tuple[str, str]]:
    """Return the texts of one input, each with its JSON pointer."""
    if isinstance(item, QuestionInput):
        return [(f"{pointer}/question", item.question), (f"{pointer}/context", item.context)]
    return [(pointer, str(item))]


def encode_all(
    task: Task[Item, Parameters, Entry],
    model: Model,
    items: Sequence[Item],
    parameters: Parameters,
    pointers: Sequence[str],
) -> list[Encoded]:
    """Tokenize and window all inputs of a request."""
    return [task.encode(model, item, parameters, pointer) for item, pointer in zip(items, pointers, strict=True)]


def decode_all(
    task: Task[Item, Parameters, Entry],
    model: Model,
    items: Sequence[Item],
    encoded: Sequence[Encoded],
    logits: Sequence[Floats],
    parameters: Parameters,
) -> list[list[Entry]]:
    """Make the entries of all inputs from the logits of all their windows."""
    remaining = iter(logits)
    return [
        task.decode(model, item, input_, [next(remaining) for _ in input_.windows], parameters)
        for item, input_ in zip(items, encoded, strict=True)
    ]


def usage(encoded: Sequence[Encoded]) -> Usage:
    """Count what the model reads."""
    windows = [window for input_ in encoded for window in input_.windows]
    return Usage(tokens=sum(len(window.ids) for window in windows), windows=len(windows))


def answer_now(
    task: Task[Item, Parameters, Entry], model: Model, item: Item, parameters: Parameters
) -> tuple[list[Entry], Usage]:
    """Answer one input in this thread, window by window: for the command line and for golden examples."""
    encoded = task.encode(model, item, parameters, "/inputs")
    logits = [forward(model, [window])[0] for window in encoded.windows]
    return task.decode(model, item, encoded, logits, parameters), usage([encoded])
