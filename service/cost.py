"""How long will the engine need? Measured when a model is loaded, corrected by every batch that runs."""

from collections.abc import Callable, Iterable
from math import exp
from time import perf_counter
from typing import Any, Final

import numpy as np

# Lengths of sequences in the three batches that are timed: one short, many short, one as long as the model reads.
SHORT, MANY, MANY_LENGTH = 8, 32, 16
REPEATS: Final = 5
# No more repeats of a batch after this: a large model on a small CPU would start slowly for a better guess.
ENOUGH_SECONDS: Final = 0.2
# The correction forgets: what the engine did more than a few of these seconds of its own time ago counts little.
MEMORY_SECONDS: Final = 2.0
# Seconds of work that the first measurement counts for, so that one odd batch right after it changes little.
PRIOR_SECONDS: Final = 0.1
# A batch that took more than this times its prediction was stopped from outside: it counts as this times.
OUTLIER: Final = 4.0


class Cost:
    """A model's seconds: per call, per token, and per token and token that it attends to, times a correction.

    `window` gives base seconds, which add up; `scale` times them are the seconds of the machine as it is now. The
    defaults are those of a small model on one slow core; the first batches correct them.
    """

    def __init__(self, per_call: float = 2e-4, per_token: float = 2e-5, per_square: float = 2e-8) -> None:
        """Start with a correction of 1."""
        self.per_call = per_call
        self.per_token = per_token
        self.per_square = per_square
        self._predicted = self._measured = PRIOR_SECONDS

    @property
    def scale(self) -> float:
        """How much slower than its base seconds the engine has been lately."""
        return self._measured / self._predicted

    def window(self, tokens: int) -> float:
        """Return the base seconds that a sequence of `tokens` adds to a batch."""
        return tokens * (self.per_token + tokens * self.per_square)

    def call(self, windows: Iterable[float]) -> float:
        """Return the base seconds of one call of the engine from those of its windows."""
        return self.per_call + sum(windows)

    def observe(self, base: float, seconds: float) -> None:
        """Learn that a call predicted at `base` took `seconds`."""
        seconds = min(seconds, OUTLIER * self.scale * base)
        keep = exp(-seconds / MEMORY_SECONDS)
        self._predicted = self._predicted * keep + base
        self._measured = self._measured * keep + seconds


def measured(forward: Callable[..., Any], longest: int, token: int) -> Cost:
    """Time a loaded model on sequences of `token` up to `longest` tokens and return its cost.

    Attention is quadratic, all else linear: with t per token and q per square, a batch of n sequences of length l takes
    call + n*l*(t + l*q). `forward` is `service.models.Forward`. The fastest of the repeats counts, because whatever
    else runs can only slow it down.
    """
    short, many, long = (_best(forward, lengths, token) for lengths in ([SHORT], [MANY_LENGTH] * MANY, [longest]))
    many_rate = many / (MANY * MANY_LENGTH)
    per_square = max(0.0, (long / longest - many_rate) / max(1, longest - MANY_LENGTH))
    per_token = max(many_rate - MANY_LENGTH * per_square, many_rate / 10)
    per_call = max(0.0, short - SHORT * (per_token + SHORT * per_square))
    return Cost(per_call, per_token, per_square)


def _best(forward: Callable[..., Any], lengths: list[int], token: int) -> float:
    ids, sizes = np.full(sum(lengths), token, np.int32), np.array(lengths, np.int32)
    best = spent = 0.0
    for _ in range(REPEATS):
        began = perf_counter()
        forward(ids, sizes, None)
        seconds = perf_counter() - began
        best, spent = min(best or seconds, seconds), spent + seconds
        if spent > ENOUGH_SECONDS:
            break
    return best
