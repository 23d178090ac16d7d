"""How long does a request take outside of the engine? For short texts HTTP and JSON cost more than the model."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Final

# Answers leave in bursts, one for each turn of the event loop; so they are counted over many turns.
WINDOW_SECONDS: Final = 0.1
# Weight of the newest window in the mean, and how many times the mean it may count at most.
NEWEST: Final = 0.3
OUTLIER: Final = 4.0
# So many are always let in: that is how a mean that is too high gets corrected.
ALWAYS: Final = 8


class Front:
    """Counts the requests that the event loop works on, and how far apart answers are while it has any.

    One thread serves them in turn, so the product of both is how long the next one will take there. Where the engine is
    what holds requests up, few are here and the product is small, whatever the mean. Only the event loop touches this.
    """

    def __init__(self) -> None:
        """Start with a millisecond each."""
        self._here = 0
        self._apart = 1e-3
        # Seconds with a request here since the last window, until when they are counted, and answers in them.
        self._busy = 0.0
        self._counted_at = 0.0
        self._answered = 0

    @property
    def seconds(self) -> float:
        """Seconds that a request which comes now will spend outside of the engine, predicted; 0: too few to tell."""
        return self._here * self._apart if self._here >= ALWAYS else 0.0

    @contextmanager
    def here(self) -> Iterator[None]:
        """Count a request from its head to its answer.

        One that raises does not tell how fast answers are made: a hundred that are late leave all at once.
        """
        self._change(1)
        try:
            yield
            self._count_answer()
        finally:
            self._change(-1)

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """Do not count it while it waits for its body or the engine, or is in another thread."""
        self._change(-1)
        try:
            yield
        finally:
            self._change(1)

    def _change(self, by: int) -> None:
        now = perf_counter()
        self._busy += now - self._counted_at if self._here else 0.0
        self._counted_at = now
        self._here += by

    def _count_answer(self) -> None:
        self._answered += 1
        if self._busy > WINDOW_SECONDS:
            apart = min(self._busy / self._answered, OUTLIER * self._apart)
            self._apart += NEWEST * (apart - self._apart)
            self._busy, self._answered = 0.0, 0
