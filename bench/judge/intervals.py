"""How sure is a score? Intervals of 95 % by drawing the examples again: Efron & Tibshirani, An Introduction to the
Bootstrap, 1993, chapter 13 (percentile method)."""

from collections.abc import Iterator
from typing import Final

import numpy as np

from bench.judge.outcomes import Doubles, Outcomes
from bench.judge.sets import SEED

RESAMPLES: Final = 1000
# So many are drawn at once: 100 x 10,570 counts are 8 MB.
_AT_ONCE: Final = 100


def interval(outcomes: Outcomes) -> tuple[float, float]:
    """Return the bounds of a score in percent; examples that are `together` are drawn together."""
    gained, possible = _sums(outcomes)
    draws = [_ratio(counts @ gained, counts @ possible) for counts in _counts(len(gained))]
    return _bounds(100 * np.concatenate(draws))


def loss(outcomes: Outcomes, reference: Outcomes) -> tuple[float, float, float]:
    """Return how many percent of the reference's score are lost, and the bounds of that; below 0 is a gain.

    Both judge the same examples, which are drawn for both at once: what is hard for both does not blur the difference.
    """
    (gained, possible), (gained2, possible2) = _sums(outcomes), _sums(reference)
    draws = [
        1 - _ratio(counts @ gained, counts @ possible) / np.maximum(_ratio(counts @ gained2, counts @ possible2), 1e-12)
        for counts in _counts(len(gained))
    ]
    return 100 * (1 - outcomes.score / max(reference.score, 1e-12)), *_bounds(100 * np.concatenate(draws))


def _sums(outcomes: Outcomes) -> tuple[Doubles, Doubles]:
    _, numbers = np.unique(outcomes.together, return_inverse=True)
    gained, possible = (np.bincount(numbers, array) for array in (outcomes.gained, outcomes.possible))
    return np.asarray(gained, np.float64), np.asarray(possible, np.float64)


def _counts(groups: int) -> Iterator[Doubles]:
    """Yield how often each group is drawn, [_AT_ONCE, groups]."""
    random = np.random.default_rng(SEED)
    for _ in range(RESAMPLES // _AT_ONCE):
        yield random.multinomial(groups, np.full(groups, 1 / groups), _AT_ONCE).astype(np.float64)


def _ratio(gained: Doubles, possible: Doubles) -> Doubles:
    return np.asarray(gained / np.maximum(possible, 1e-12))


def _bounds(draws: Doubles) -> tuple[float, float]:
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)
