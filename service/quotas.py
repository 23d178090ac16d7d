"""How many tokens a caller may still have read: a bucket per key that fills evenly."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import ceil, inf
from time import monotonic, perf_counter
from typing import Final

from service.errors import QuotaExceededError, TooLargeError

WINDOW_SECONDS: Final = 60
# Timers of the event loop count whole milliseconds: a deadline's may end just before it.
TIMER_EARLY_SECONDS: Final = 0.002


class Bucket:
    """Holds at most a minute's tokens and gains them evenly. Only the event loop touches it, so there are no locks.

    Tokens are those that the model reads, special ones and overlaps of windows included: what a request costs us.
    """

    def __init__(self, tokens_per_minute: int, clock: Callable[[], float] = monotonic) -> None:
        """Begin full."""
        self.tokens_per_minute = tokens_per_minute
        self._clock = clock
        # Tokens times WINDOW_SECONDS: a gain is then a product, and whole seconds of it have no rounding.
        self._held = float(tokens_per_minute * WINDOW_SECONDS)
        self._at = clock()

    def take(self, tokens: int) -> None:
        """Take `tokens`, or raise and take none.

        Raises:
            QuotaExceededError: not so many now; `retry_after` says when. TooLargeError: never so many.
        """
        quota = self.tokens_per_minute
        if tokens > quota:
            raise TooLargeError.at(
                "/inputs",
                f"{tokens} tokens are more than your key's quota of {quota} a minute: send fewer or shorter inputs",
                value=tokens,
                limit=quota,
            )
        self._fill()
        if tokens * WINDOW_SECONDS > self._held:
            raise QuotaExceededError(
                f"your key may have {quota} tokens read a minute; {self._left} are left, this needs {tokens}",
                retry_after=self._seconds_until(tokens),
            )
        self._held -= tokens * WINDOW_SECONDS

    def check(self) -> None:
        """Raise QuotaExceededError where not one token is left: before a text is tokenized for nothing."""
        self.take(1)
        self.give_back(1)

    def give_back(self, tokens: int) -> None:
        """Undo `take`."""
        self._fill()
        self._held = min(self._held + tokens * WINDOW_SECONDS, float(self.tokens_per_minute * WINDOW_SECONDS))

    def headers(self, wait: int | None = None) -> dict[str, str]:
        """Return draft-ietf-httpapi-ratelimit-headers-10's fields: the policy, the tokens left, seconds until more.

        Those seconds are `wait`, the Retry-After of the same answer, else the time until the bucket is full again.
        """
        self._fill()
        seconds = self._seconds_until(self.tokens_per_minute) if wait is None else wait
        return {
            "ratelimit-policy": f'"default";q={self.tokens_per_minute};w={WINDOW_SECONDS}',
            "ratelimit": f'"default";r={self._left};t={seconds}',
        }

    @property
    def _left(self) -> int:
        """Whole tokens that are held."""
        return int(self._held / WINDOW_SECONDS)

    def _fill(self) -> None:
        now = self._clock()
        gained = (now - self._at) * self.tokens_per_minute
        self._held, self._at = min(self._held + gained, float(self.tokens_per_minute * WINDOW_SECONDS)), now

    def _seconds_until(self, tokens: int) -> int:
        return max(0, ceil((tokens * WINDOW_SECONDS - self._held) / self.tokens_per_minute))


@contextmanager
def charged(bucket: Bucket | None, tokens: int, deadline: float = inf) -> Iterator[None]:
    """Take `tokens` before the engine is asked; give them back if it refuses, fails, or is too late.

    A caller who leaves pays: cancelling is free for nobody else. But what passes its `deadline`, `perf_counter`
    seconds, is cancelled too. Without a bucket nothing is counted.

    Raises:
        QuotaExceededError, TooLargeError: see `Bucket.take`.
    """
    if bucket is None:
        yield
        return
    bucket.take(tokens)
    try:
        yield
    except BaseException as error:
        # Else a CancelledError of a caller who left.
        if isinstance(error, Exception) or perf_counter() >= deadline - TIMER_EARLY_SECONDS:
            bucket.give_back(tokens)
        raise
