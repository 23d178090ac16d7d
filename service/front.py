"""The event loop as a queue: how many requests it works on at once, and how long will the next one take outside of the
engine? For short texts HTTP and JSON cost more than the model.
"""

import asyncio
from asyncio.events import TimerHandle
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import perf_counter
from typing import Final

# Answers leave in bursts, one for each turn of the event loop; so they are counted over many turns.
WINDOW_SECONDS: Final = 0.1
# Weight of the newest window in the mean, and how many times the mean it may count at most.
NEWEST: Final = 0.3
OUTLIER: Final = 4.0
# So many are let in at once. A turn of the event loop takes as long as all of them, and who comes meanwhile is neither
# read nor refused before its end: a few hundred would make every prediction too late. But each needs several turns, and
# those are long while many are refused: eight were too few (bench http, tiny texts at twice capacity).
AT_ONCE: Final = 24
# So few are always let in: that is how a mean that is too high gets corrected.
ALWAYS: Final = 8

# Whether the request at hand is counted: one that reached the application without a server is not.
_counted: ContextVar[bool] = ContextVar("counted", default=False)


class Front:
    """Lets requests in, counts those that the event loop works on, and how far apart answers are while it has any.

    One thread serves them in turn, so the product of both is how long the next one will take there. Where the engine is
    what holds requests up, few are here and the product is small, whatever the mean. Only the event loop touches this.
    """

    def __init__(self) -> None:
        """Start with a millisecond each."""
        # What starts a request whose turn did not come yet, in their order, and what ends its wait.
        self._waiting: OrderedDict[Callable[[], None], TimerHandle] = OrderedDict()
        # Tasks that were made and did not begin yet.
        self._started = 0
        self._here = 0
        self._apart = 1e-3
        # Seconds with a request here since the last window, until when they are counted, and answers in them.
        self._busy = 0.0
        self._counted_at = 0.0
        self._answered = 0

    @property
    def seconds(self) -> float:
        """Seconds that a request which was let in will spend outside of the engine, predicted; 0: too few to tell."""
        return self._predict(self._started + self._here)

    @property
    def seconds_at_the_door(self) -> float:
        """The same for a request that comes now, with the wait for its turn."""
        return self._predict(len(self._waiting) + self._started + self._here)

    @property
    def at_the_door(self) -> int:
        """How many came and did not begin; read by other threads."""
        return len(self._waiting) + self._started

    def _predict(self, count: int) -> float:
        return count * self._apart if count >= ALWAYS else 0.0

    def come(self, start: Callable[[], None], late: Callable[[], None], seconds: float) -> None:
        """Call `start`, which makes the task of a request that begins with `begun`: at once or when it is its turn.

        Call `late` instead where that has not come after so many seconds.
        """
        if self._started + self._here < AT_ONCE:  # then nobody waits
            self._started += 1
            start()
        else:
            self._waiting[start] = asyncio.get_running_loop().call_later(seconds, self._give_up, start, late)

    def _give_up(self, start: Callable[[], None], late: Callable[[], None]) -> None:
        del self._waiting[start]
        late()

    def _let_in(self) -> None:
        while self._waiting and self._started + self._here < AT_ONCE:
            start, timer = self._waiting.popitem(last=False)
            timer.cancel()
            self._started += 1
            start()

    @contextmanager
    def begun(self) -> Iterator[None]:
        """Count a request that was let in until it ends."""
        self._started -= 1
        with self.here():
            yield

    @contextmanager
    def here(self) -> Iterator[None]:
        """Count a request."""
        token = _counted.set(True)
        self._change(1)
        try:
            yield
        finally:
            self._change(-1)
            _counted.reset(token)

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """Do not count it while it waits for its client or the engine, or is in another thread."""
        if not _counted.get():
            yield
            return
        self._change(-1)
        try:
            yield
        finally:
            self._change(1)

    def answered(self) -> None:
        """Count an answer. Refusals and errors are none: a hundred that are late leave all at once."""
        self._answered += 1
        if self._busy > WINDOW_SECONDS:
            apart = min(self._busy / self._answered, OUTLIER * self._apart)
            self._apart += NEWEST * (apart - self._apart)
            self._busy, self._answered = 0.0, 0

    def _change(self, by: int) -> None:
        now = perf_counter()
        self._busy += now - self._counted_at if self._here else 0.0
        self._counted_at = now
        self._here += by
        self._let_in()
