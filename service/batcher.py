"""Windows of many requests to batches for the engine: an asyncio front, one worker thread behind it."""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Final

import numpy as np

from service.call import Call, current
from service.errors import DeadlineError, EngineFailedError, OverloadedError, TooLargeError
from service.front import Front
from service.metrics import Metrics
from service.models import Model
from service.schedule import Job, Schedule
from service.windows import Floats, Window

log = logging.getLogger("sparselane")

# Characters for which one token is expected at least, before a text is read. English has 4 to 5; a guess that is too
# low refuses nothing that would have been in time.
CHARACTERS_PER_TOKEN: Final = 6
# One call takes a second on the slowest CPU that makes sense; a server that stops does not wait longer for it.
LAST_CALL_SECONDS: Final = 5.0
# What the gauge of the wait is worth while nobody waits.
NO_CALL: Final = Call()


@dataclass(eq=False)
class _Job(Job):
    """A job that somebody waits for."""

    answered: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    started_at: float = 0.0
    logits: list[Floats] = field(default_factory=list)


_Batch = Sequence[tuple[_Job, Window]]


@dataclass(frozen=True)
class Inferred:
    """A request's logits, one array per window, and the seconds it waited for the engine and was in it."""

    logits: list[Floats]
    queue_seconds: float
    infer_seconds: float


class Batcher:
    """Runs the engine on batches of at most `max_batch_tokens`, in the order of a Schedule; one model per batch.

    Only the event loop touches the queue, so there are no locks. A request is admitted whole or refused whole. Where
    its client has gone or its deadline has passed, what is not yet in a batch is dropped. An answer never depends on
    its batch: the engine guarantees the same bits.
    """

    def __init__(self, max_batch_tokens: int, max_queue_tokens: int, metrics: Metrics) -> None:
        """Make a queue that nothing serves yet, see `start`."""
        self._max_queue_tokens = max_queue_tokens
        self._metrics = metrics
        self.front = Front()
        # The engine's part of a short request's wait; asked for when the page of metrics is written, by another thread.
        self._queue_seconds = 0.0
        metrics.predicted_wait.set_function(lambda: self._queue_seconds + self.front.seconds_at_the_door)
        self._schedule: Schedule[_Job] = Schedule(max_batch_tokens)
        self._tokens = 0
        self._reads_large = False
        self._arrived = asyncio.Event()
        self._engine = ThreadPoolExecutor(1, "engine")
        self._loop: asyncio.Task[None] | None = None
        # When the call of the engine began that has not returned, `perf_counter` seconds; read by other threads.
        self.engine_since: float | None = None
        # Whether `close` gave up on one.
        self.stuck = False

    def start(self) -> None:
        """Begin to serve the queue; needs a running event loop."""
        self._loop = asyncio.create_task(self._run(), name="batcher")

    async def close(self) -> None:
        """Answer everything that was admitted, then stop; give up on a call of the engine that does not return."""
        while len(self._schedule) or self._tokens:
            if self.engine_since is not None and perf_counter() - self.engine_since > LAST_CALL_SECONDS:
                log.error("stopping: a call of the engine has not returned for %g s", LAST_CALL_SECONDS)
                self.stuck = True
                break
            await asyncio.sleep(0.01)
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        self._engine.shutdown(wait=not self.stuck)

    @property
    def waiting_tokens(self) -> int:
        """Tokens that were admitted and are not answered."""
        return self._tokens

    @property
    def runs(self) -> bool:
        """Whether the queue is served; read by other threads."""
        return self._loop is not None and not self._loop.done()

    def check_wait(self, call: Call, outside: float) -> None:
        """Raise OverloadedError where even the smallest request would be late: all that is known before the body.

        `outside`: seconds that it will spend outside of the engine.
        """
        self._schedule.check(call.lane, call.deadline, perf_counter(), outside=outside)

    def check_room(self, tokens: int) -> None:
        """Raise OverloadedError unless `tokens` more fit now, or TooLargeError if they never will."""
        if tokens > self._max_queue_tokens:
            raise too_many_tokens(tokens, self._max_queue_tokens)
        if self._tokens + tokens > self._max_queue_tokens:
            raise OverloadedError(
                f"{self._tokens} tokens wait and {tokens} more are over the limit of {self._max_queue_tokens}",
                retry_after=self._schedule.retry_after(perf_counter()),
            )

    @contextmanager
    def reading(self, model: Model, characters: int) -> Iterator[None]:
        """Count the work of texts while they are tokenized, at a guess; raises OverloadedError as `infer` would.

        So reading cannot pile up before the queue: whoever comes meanwhile sees what will be in front of it. What seems
        to be more than the whole queue is not counted, since it will hardly get there, but only one such is read.
        """
        tokens = 1 + characters // CHARACTERS_PER_TOKEN
        if tokens > self._max_queue_tokens:
            with self._reading_alone():
                yield
            return
        base, call = tokens * model.cost.per_token, current()
        self.check_room(tokens)
        lane = self._schedule.lane(tokens, call.lane)
        own = base * model.cost.scale
        self._schedule.check(lane, call.deadline, perf_counter(), own, outside=self.front.seconds)
        self._schedule.reading(model.cost, base)
        self._count(tokens)
        try:
            yield
        finally:
            self._schedule.reading(model.cost, -base)
            self._count(-tokens)

    @contextmanager
    def _reading_alone(self) -> Iterator[None]:
        """Let one request be read that seems too large: its tokens tell, not the load. Else it would be tried again."""
        if self._reads_large:
            raise OverloadedError("another request as large as this is being read: try again later", retry_after=1)
        self._reads_large = True
        try:
            yield
        finally:
            self._reads_large = False

    async def infer(self, model: Model, windows: Sequence[Window]) -> Inferred:
        """Return the logits of each window: [C] for text classification, [T, C] otherwise.

        Deadline and lane are those of the current call.

        Raises:
            OverloadedError, TooLargeError: see `check_room`; or it could not be answered in time.
            DeadlineError: it was admitted, but the engine got slower. EngineFailedError: the engine raised.
        """
        if not windows:
            return Inferred([], 0.0, 0.0)
        tokens = sum(len(window.ids) for window in windows)
        self.check_room(tokens)
        call, now = current(), perf_counter()
        job = _Job(model, windows, now, call.deadline, self._schedule.lane(tokens, call.lane))
        self._schedule.admit(job, now, self.front.seconds)
        self._count(tokens)
        self._arrived.set()
        try:
            with self.front.elsewhere():
                await job.answered
        finally:
            self._drop(job)
            self._schedule.learn(job, perf_counter())
        return Inferred(job.logits, job.started_at - job.arrived, perf_counter() - job.started_at)

    async def _run(self) -> None:
        while True:
            began = perf_counter()
            self._drop_hopeless(began)
            batch = self._schedule.next_batch(began)
            if not batch:
                self._queue_seconds = 0.0
                self._arrived.clear()
                await self._arrived.wait()
                continue
            await self._forward(batch, began)

    async def _forward(self, batch: _Batch, began: float) -> None:
        windows = [window for _, window in batch]
        for job, _ in batch:
            job.started_at = job.started_at or began
        self._queue_seconds = self._schedule.wait(NO_CALL.lane, began)
        try:
            self.engine_since = began
            work = asyncio.get_running_loop().run_in_executor(self._engine, timed_forward, batch[0][0].model, windows)
            logits, seconds = await work
            self._deliver(batch, logits)
            self._schedule.done(batch, seconds, perf_counter() - began - seconds)
        except Exception as error:
            log.exception("the engine failed on a batch of %d windows", len(windows))
            self._fail(batch, error)
            self._schedule.done(batch, perf_counter() - began)
        finally:
            self.engine_since = None
        self._metrics.batch([len(window.ids) for window in windows])
        self._count(-sum(len(window.ids) for window in windows))

    def _drop_hopeless(self, now: float) -> None:
        while job := self._schedule.hopeless(now):
            self._drop(job)
            if not job.answered.done():
                job.answered.set_exception(DeadlineError("the server got slower: this can not be answered in time"))

    def _drop(self, job: _Job) -> None:
        """Forget what no batch has taken of a request: nobody waits for it any more, or another part failed."""
        tokens = job.tokens
        if self._schedule.remove(job):
            self._count(-tokens)

    def _deliver(self, batch: _Batch, logits: list[Floats]) -> None:
        for (job, _), values in zip(batch, logits, strict=True):
            job.logits.append(values)
            if len(job.logits) == len(job.windows) and not job.answered.done():
                job.answered.set_result(None)

    def _fail(self, batch: _Batch, error: Exception) -> None:
        for job, _ in batch:
            self._drop(job)
            if not job.answered.done():
                job.answered.set_exception(EngineFailedError(f"the engine failed: {type(error).__name__}"))

    def _count(self, tokens: int) -> None:
        self._tokens += tokens
        self._metrics.queue_tokens.set(self._tokens)
        for lane, line in self._schedule.lines.items():
            self._metrics.queue_depth[lane].set(len(line.jobs))


def too_many_tokens(tokens: int, limit: int) -> TooLargeError:
    """Return the error of a request that is larger than the whole queue."""
    message = f"at least {tokens} tokens are more than the {limit} that this server holds: send fewer inputs"
    return TooLargeError.at("/inputs", message, value=tokens, limit=limit)


def timed_forward(model: Model, windows: Sequence[Window]) -> tuple[list[Floats], float]:
    """Run the engine as `forward` does; return the seconds that it took, too."""
    began = perf_counter()
    logits = forward(model, windows)
    return logits, perf_counter() - began


def forward(model: Model, windows: Sequence[Window]) -> list[Floats]:
    """Run the engine once over `windows`; return the logits of each: [C] for text classification, [T, C] otherwise."""
    ids = np.concatenate([window.ids for window in windows])
    types = np.concatenate([window.types for window in windows]) if model.uses_types else None
    lengths = np.array([len(window.ids) for window in windows], np.int32)
    logits = model.forward(ids, lengths, types)
    if not model.rows_are_tokens:
        return list(logits)
    return np.split(logits, np.cumsum(lengths)[:-1])
