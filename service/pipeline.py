"""A request's way: check, tokenize, wait and infer, make the answer; off the event loop wherever it takes time."""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from types import MappingProxyType
from typing import Any, Final, TypeVar

from service.batcher import Batcher, forward, too_many_tokens
from service.call import Call
from service.call import current as current_call
from service.errors import ClientGoneError, TooLargeError
from service.front import Front
from service.metrics import Metrics
from service.models import Model
from service.question_answering import QUESTION_ANSWERING
from service.quotas import charged
from service.request_record import current
from service.schemas import QuestionInput, Response, TextPair, Usage
from service.settings import Settings
from service.task import Asked, Entry, Item, Parameters, Task
from service.text_classification import TEXT_CLASSIFICATION
from service.token_classification import TOKEN_CLASSIFICATION
from service.windows import Encoded, Floats

TASKS: Final[Mapping[str, Task[Any, Any, Any]]] = MappingProxyType(
    {task.name: task for task in (QUESTION_ANSWERING, TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION)}
)
# Texts of fewer characters are read on the event loop: that takes less than a millisecond, as two changes of thread do.
# So are answers made of fewer tokens; windows that a caller made overlap have many more tokens than the text.
AT_ONCE: Final = 2_000
# Requests with more have a thread of their own, so that a book does not hold up every page.
LONG: Final = 20_000

Result = TypeVar("Result")


class Pipeline:
    """Answers requests: texts in two threads, one of them for long ones; the engine behind a Batcher."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Make the queue and the threads; nothing runs before `start`."""
        self._settings = settings
        self._metrics = metrics
        self._batcher = Batcher(settings.max_batch_tokens, settings.max_queue_tokens, metrics)
        self._texts = ThreadPoolExecutor(1, "text")
        self._long_texts = ThreadPoolExecutor(1, "long-text")

    def start(self) -> None:
        """Begin to answer; needs a running event loop."""
        self._batcher.start()

    async def close(self) -> None:
        """Finish what was admitted, then stop all threads."""
        await self._batcher.close()
        self._texts.shutdown()
        self._long_texts.shutdown()

    @property
    def front(self) -> Front:
        """The event loop's part of the way."""
        return self._batcher.front

    def check_at_the_door(self, call: Call) -> None:
        """Raise OverloadedError where a call that comes now has no chance to be in time, whatever its body."""
        self._batcher.check_wait(call, self.front.seconds_at_the_door)

    def check_inside(self, call: Call) -> None:
        """The same for one whose turn it is."""
        self._batcher.check_wait(call, self.front.seconds)

    @property
    def engine_since(self) -> float | None:
        """When the call of the engine began that has not returned, `perf_counter` seconds."""
        return self._batcher.engine_since

    @property
    def engine_stuck(self) -> bool:
        """Whether `close` gave up on a call of the engine."""
        return self._batcher.stuck

    @property
    def runs(self) -> bool:
        """Whether what is admitted gets served."""
        return self._batcher.runs

    async def answer(
        self, task: Task[Item, Parameters, Entry], model: Model, request: Asked[Item, Parameters]
    ) -> tuple[Response[Entry], dict[str, float]]:
        """Return the answer to a checked request, and the seconds that each stage took.

        Raises:
            TooLargeError, InvalidRequestError: more than the settings or the model allow.
            QuotaExceededError: more tokens than the caller's key may have read now.
            OverloadedError: no room in the queue, or it would be late. DeadlineError, EngineFailedError: see `Batcher`.
        """
        items, pointers = request.items(), request.pointers()
        record = current()
        record.task, record.model = task.name, model.name
        if self._settings.log_texts:
            record.texts += [text for item in items for _, text in texts(item, "")]
        if record.quota is not None:
            record.quota.check()
        self._check_limits(items, pointers)
        characters = sum(len(text) for item in items for _, text in texts(item, ""))
        began = perf_counter()
        with self._batcher.reading(model, characters):
            gone, most = threading.Event(), self._settings.max_queue_tokens
            arguments = (task, model, items, request.parameters, pointers, most, gone.is_set)
            try:
                encoded = await self._in_thread(characters, encode_all, *arguments)
            finally:
                gone.set()
        tokenized = perf_counter()
        read = usage(encoded)
        record.read(read)
        with charged(record.quota, read.tokens, current_call().deadline):
            inferred = await self._batcher.infer(model, [window for input_ in encoded for window in input_.windows])
        done = perf_counter()
        results = await self._in_thread(
            max(characters, read.tokens), decode_all, task, model, items, encoded, inferred.logits, request.parameters
        )
        stages = {
            "tokenize": tokenized - began,
            "queue": inferred.queue_seconds,
            "infer": inferred.infer_seconds,
            "post": perf_counter() - done,
        }
        record.timed(began, stages)
        self._metrics.answered(task.name, model.name, stages, read.tokens, read.windows)
        return Response(model=model.name, results=results, usage=read), stages

    def check_count(self, count: int, pointer: str = "/inputs") -> None:
        """Raise TooLargeError for more inputs than a request may have: before anything is made of them."""
        most = self._settings.max_inputs
        if count > most:
            message = f"there are {count} inputs, at most {most} are allowed: send more requests"
            raise TooLargeError.at(pointer, message, value=count, limit=most)

    def check_lists(self, *fields: object, pointer: str = "/inputs") -> None:
        """Do the same for fields of a body that nobody has looked at: to check a million inputs takes a second."""
        for field in fields:
            if isinstance(field, list):
                self.check_count(len(field), pointer)

    def _check_limits(self, items: Sequence[Item], pointers: Sequence[str]) -> None:
        self.check_count(len(items))
        longest = self._settings.max_text_chars
        for item, pointer in zip(items, pointers, strict=True):
            for where, text in texts(item, pointer):
                if len(text) > longest:
                    message = f"the text has {len(text)} characters, at most {longest} are allowed: split it"
                    raise TooLargeError.at(where, message, value=len(text), limit=longest)

    async def _in_thread(self, characters: int, work: Callable[..., Result], *arguments: object) -> Result:
        """Do `work` on so many characters, or tokens, where it holds up the fewest others."""
        if characters < AT_ONCE:
            return work(*arguments)
        threads = self._texts if characters < LONG else self._long_texts
        with self._batcher.front.elsewhere():
            return await asyncio.get_running_loop().run_in_executor(threads, work, *arguments)


def texts(item: object, pointer: str) -> list[tuple[str, str]]:
    """Return the texts of one input, each with its JSON pointer; raw tokens have none."""
    if isinstance(item, QuestionInput):
        return [(f"{pointer}/question", item.question), (f"{pointer}/context", item.context)]
    if isinstance(item, TextPair):
        return [(f"{pointer}/text", item.text), (f"{pointer}/text_pair", item.text_pair)]
    return [(pointer, item)] if isinstance(item, str) else []


def encode_all(
    task: Task[Item, Parameters, Entry],
    model: Model,
    items: Sequence[Item],
    parameters: Parameters,
    pointers: Sequence[str],
    most_tokens: int,
    gone: Callable[[], bool],
) -> list[Encoded]:
    """Tokenize and window all inputs of a request; stop where they are over `most_tokens`, or nobody waits any more.

    Raises:
        TooLargeError: over the limit. ClientGoneError: `gone()` is true. InvalidRequestError: see `Task.encode`.
    """
    encoded: list[Encoded] = []
    tokens = 0
    for item, pointer in zip(items, pointers, strict=True):
        if gone():
            raise ClientGoneError("nobody waits for the answer any more")
        encoded.append(task.encode(model, item, parameters, pointer))
        tokens += sum(len(window.ids) for window in encoded[-1].windows)
        if tokens > most_tokens:
            raise too_many_tokens(tokens, most_tokens)
    return encoded


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


def server_timing(stages: Mapping[str, float]) -> dict[str, str]:
    """Return the header that tells the caller the milliseconds of each stage."""
    return {"server-timing": ", ".join(f"{stage};dur={seconds * 1e3:.2f}" for stage, seconds in stages.items())}


def answer_now(
    task: Task[Item, Parameters, Entry], model: Model, item: Item, parameters: Parameters
) -> tuple[list[Entry], Usage]:
    """Answer one input in this thread, window by window: for the command line and for golden examples."""
    encoded = task.encode(model, item, parameters, "/inputs")
    logits = [forward(model, [window])[0] for window in encoded.windows]
    return task.decode(model, item, encoded, logits, parameters), usage([encoded])
