"""Windows of many requests to batches for the engine: an asyncio front, one worker thread behind it."""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import ceil
from time import perf_counter
from typing import Final

import numpy as np

from service.errors import EngineFailedError, OverloadedError, TooLargeError
from service.metrics import Metrics
from service.models import Model
from service.windows import Floats, Window

log = logging.getLogger("sparselane")

# Weight of the newest batch in the running mean of the engine's speed.
NEWEST: Final = 0.2
LONGEST_RETRY_SECONDS: Final = 60


@dataclass(eq=False)
class _Job:
    """The windows of one request; `taken` of them are in a batch or done."""

    model: Model
    windows: Sequence[Window]
    answered: asyncio.Future[None]
    queued_at: float
    started_at: float = 0.0
    taken: int = 0
    logits: list[Floats] = field(default_factory=list)


@dataclass(frozen=True)
class Inferred:
    """A request's logits, one array per window, and the seconds it waited for the engine and was in it."""

    logits: list[Floats]
    queue_seconds: float
    infer_seconds: float


class Batcher:
    """Runs the engine on batches of at most `max_batch_tokens`, first come, first served; one model per batch.

    Only the event loop touches the queue, so there are no locks. A request is admitted whole or refused whole. Where
    its client has gone, what is not yet in a batch is dropped. An answer never depends on its batch: the engine
    guarantees the same bits.
    """

    def __init__(self, max_batch_tokens: int, max_queue_tokens: int, metrics: Metrics) -> None:
        """Make a queue that nothing serves yet, see `start`."""
        self._max_batch_tokens = max_batch_tokens
        self._max_queue_tokens = max_queue_tokens
        self._metrics = metrics
        self._jobs: deque[_Job] = deque()
        self._tokens = 0
        self._tokens_per_second = 0.0
        self._arrived = asyncio.Event()
        self._engine = ThreadPoolExecutor(1, "engine")
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to serve the queue; needs a running event loop."""
        self._loop = asyncio.create_task(self._run(), name="batcher")

    async def close(self) -> None:
        """Answer everything that was admitted, then stop."""
        while self._jobs or self._tokens:
            await asyncio.sleep(0.01)
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        self._engine.shutdown()

    @property
    def waiting_tokens(self) -> int:
        """Tokens that were admitted and are not answered."""
        return self._tokens

    def check_room(self, tokens: int) -> None:
        """Raise OverloadedError unless `tokens` more fit now, or TooLargeError if they never will."""
        if tokens > self._max_queue_tokens:
            raise TooLargeError.at(
                "/inputs",
                f"{tokens} tokens are more than the {self._max_queue_tokens} that this server holds: send fewer inputs",
                value=tokens,
                limit=self._max_queue_tokens,
            )
        if self._tokens + tokens > self._max_queue_tokens:
            raise OverloadedError(
                f"{self._tokens} tokens wait and {tokens} more are over the limit of {self._max_queue_tokens}",
                retry_after=self._seconds_for(self._tokens),
            )

    async def infer(self, model: Model, windows: Sequence[Window]) -> Inferred:
        """Return the logits of each window: [C] for text classification, [T, C] otherwise.

        Raises:
            OverloadedError, TooLargeError: see `check_room`. EngineFailedError: the engine raised.
        """
        if not windows:
            return Inferred([], 0.0, 0.0)
        tokens = sum(len(window.ids) for window in windows)
        self.check_room(tokens)
        job = _Job(model, windows, asyncio.get_running_loop().create_future(), perf_counter())
        self._count(tokens)
        self._jobs.append(job)
        self._arrived.set()
        try:
            await job.answered
        finally:
            self._drop(job)
        return Inferred(job.logits, job.started_at - job.queued_at, perf_counter() - job.started_at)

    async def _run(self) -> None:
        while True:
            batch = self._next_batch()
            if not batch:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            windows = [window for _, window in batch]
            began = perf_counter()
            try:
                work = asyncio.get_running_loop().run_in_executor(self._engine, forward, batch[0][0].model, windows)
                self._deliver(batch, await work)
            except Exception as error:
                log.exception("the engine failed on a batch of %d windows", len(windows))
                self._fail(batch, error)
            tokens = sum(len(window.ids) for window in windows)
            self._measure(tokens, len(windows), perf_counter() - began)
            self._count(-tokens)

    def _next_batch(self) -> list[tuple[_Job, Window]]:
        """Take windows of the first request's model from the front of the queue: as many as fit, at least one."""
        batch: list[tuple[_Job, Window]] = []
        tokens = 0
        for job in list(self._jobs):
            if batch and job.model is not batch[0][0].model:
                continue
            job.started_at = job.started_at or perf_counter()
            while job.taken < len(job.windows):
                window = job.windows[job.taken]
                if batch and tokens + len(window.ids) > self._max_batch_tokens:
                    return batch
                batch.append((job, window))
                tokens += len(window.ids)
                job.taken += 1
            self._jobs.remove(job)
        return batch

    def _drop(self, job: _Job) -> None:
        """Forget what no batch has taken of a request: its client has gone, or the engine failed on another part."""
        if job in self._jobs:
            self._jobs.remove(job)
            self._count(-sum(len(window.ids) for window in job.windows[job.taken :]))

    def _deliver(self, batch: list[tuple[_Job, Window]], logits: list[Floats]) -> None:
        for (job, _), values in zip(batch, logits, strict=True):
            job.logits.append(values)
            if len(job.logits) == len(job.windows) and not job.answered.done():
                job.answered.set_result(None)

    def _fail(self, batch: list[tuple[_Job, Window]], error: Exception) -> None:
        for job, _ in batch:
            self._drop(job)
            if not job.answered.done():
                job.answered.set_exception(EngineFailedError(f"the engine failed: {type(error).__name__}"))

    def _count(self, tokens: int) -> None:
        self._tokens += tokens
        self._metrics.queue_tokens.set(self._tokens)

    def _measure(self, tokens: int, windows: int, seconds: float) -> None:
        self._metrics.batch_tokens.observe(tokens)
        self._metrics.batch_windows.observe(windows)
        speed = tokens / max(seconds, 1e-6)
        self._tokens_per_second += (speed - self._tokens_per_second) * (NEWEST if self._tokens_per_second else 1.0)

    def _seconds_for(self, tokens: int) -> int:
        speed = self._tokens_per_second or tokens
        return max(1, min(LONGEST_RETRY_SECONDS, ceil(tokens / speed)))


def forward(model: Model, windows: Sequence[Window]) -> list[Floats]:
    """Run the engine once over `windows`; return the logits of each: [C] for text classification, [T, C] otherwise."""
    ids = np.concatenate([window.ids for window in windows])
    types = np.concatenate([window.types for window in windows]) if model.uses_types else None
    lengths = np.array([len(window.ids) for window in windows], np.int32)
    logits = model.forward(ids, lengths, types)
    if not model.rows_are_tokens:
        return list(logits)
    return np.split(logits, np.cumsum(lengths)[:-1])
