"""In which order windows are seen: every batch of a run is fixed by (lengths, batch size, length of the run, seed)."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Windows are shuffled, then sorted by length inside pools of this many batches: little padding, little bias.
POOL_BATCHES = 50


def count_steps(windows: int, batch_size: int, epochs: float, steps: int = 0) -> int:
    """Return the optimizer steps of a run: `steps` unless it is 0, else those of `epochs`, perhaps a fraction."""
    return steps or max(1, round(epochs * -(-windows // batch_size)))


def plan_batches(lengths: Sequence[int], batch_size: int, epochs: float, seed: int, steps: int = 0) -> list[list[int]]:
    """Return the window numbers of every batch of a run, so that a resumed run sees exactly what the first would have.

    Within an epoch each window occurs once; the last epoch is cut short where the run ends inside it.
    """
    total = count_steps(len(lengths), batch_size, epochs, steps)
    batches: list[list[int]] = []
    epoch = 0
    while len(batches) < total:
        batches.extend(batch.tolist() for batch in _epoch(np.asarray(lengths), batch_size, seed, epoch))
        epoch += 1
    return batches[:total]


class FreshPlan(Sequence[list[int]]):
    """The batches of a run whose windows are new in every epoch: window i of epoch e is number e * windows + i.

    Made as it is asked for, one epoch at a time: 100,000 steps of 256 windows do not fit a list of lists.
    """

    def __init__(self, lengths: NDArray[np.int64], batch_size: int, steps: int, seed: int) -> None:
        """Plan `steps` batches over windows of these lengths, int64 [W]."""
        self._windows, self._steps = len(lengths), steps
        self._per_epoch = -(-len(lengths) // batch_size)
        self._epoch = lru_cache(1)(lambda epoch: _epoch(lengths, batch_size, seed, epoch))

    def __len__(self) -> int:
        """Number of batches."""
        return self._steps

    def __getitem__(self, step: Any) -> Any:
        """Return the window numbers of batch `step`; slices are not needed."""
        if not 0 <= step < self._steps:
            raise IndexError(f"step {step} of {self._steps}")
        epoch, at = divmod(step, self._per_epoch)
        return (self._epoch(epoch)[at] + epoch * self._windows).tolist()


def _epoch(lengths: NDArray[np.int64], batch_size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(len(lengths))
    batches = []
    for at in range(0, len(order), batch_size * POOL_BATCHES):
        pool = order[at : at + batch_size * POOL_BATCHES]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    return [batches[i] for i in random.permutation(len(batches))]


def plan_evaluation(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Return batches of windows of similar length that cover each window once."""
    order = np.argsort(np.asarray(lengths), kind="stable")
    return [order[i : i + batch_size].tolist() for i in range(0, len(order), batch_size)]
