"""In which order windows are seen: every batch of a run is fixed by (lengths, batch size, epochs, seed)."""

from collections.abc import Sequence

import numpy as np

# Windows are shuffled, then sorted by length inside pools of this many batches: little padding, little bias.
POOL_BATCHES = 50


def plan_batches(lengths: Sequence[int], batch_size: int, epochs: float, seed: int) -> list[list[int]]:
    """Return the window numbers of every batch of a run, so that a resumed run sees exactly what the first would have.

    Within an epoch each window occurs once; `epochs` may be a fraction, then the last epoch is cut short.
    """
    per_epoch = -(-len(lengths) // batch_size)
    total = max(1, round(epochs * per_epoch))
    batches: list[list[int]] = []
    epoch = 0
    while len(batches) < total:
        batches.extend(_epoch(np.asarray(lengths), batch_size, np.random.default_rng((seed, epoch))))
        epoch += 1
    return batches[:total]


def _epoch(lengths: np.ndarray, batch_size: int, random: np.random.Generator) -> list[list[int]]:
    order = random.permutation(len(lengths))
    batches = []
    for at in range(0, len(order), batch_size * POOL_BATCHES):
        pool = order[at : at + batch_size * POOL_BATCHES]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[i : i + batch_size].tolist() for i in range(0, len(pool), batch_size)]
    return [batches[i] for i in random.permutation(len(batches))]


def plan_evaluation(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Return batches of windows of similar length that cover each window once."""
    order = np.argsort(np.asarray(lengths), kind="stable")
    return [order[i : i + batch_size].tolist() for i in range(0, len(order), batch_size)]
