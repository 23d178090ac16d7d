"""Does the model know when it is right? Expected calibration error: Guo et al., arXiv 1706.04599, section 2."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from bench.judge.outcomes import Decision

BINS: Final = 15  # as in the paper


@dataclass(frozen=True)
class Bin:
    """The decisions whose confidence is above `low` and at most `high`: how many, mean confidence, share right."""

    low: float
    high: float
    count: int
    confidence: float
    right: float


def bins(decisions: Sequence[Decision]) -> list[Bin]:
    """Sort decisions into `BINS` bins of equal width, leaving out empty ones; only what is wholly right is right."""
    confidence = np.array([decision.confidence for decision in decisions])
    right = np.array([decision.worth == 1 for decision in decisions], np.float64)
    places = np.clip(np.ceil(confidence * BINS) - 1, 0, BINS - 1).astype(int)
    result = []
    for place in np.unique(places):
        inside = places == place
        means = float(confidence[inside].mean()), float(right[inside].mean())
        result.append(Bin(float(place / BINS), float((place + 1) / BINS), int(inside.sum()), *means))
    return result


def expected_error(found: Sequence[Bin]) -> float:
    """Return the mean distance of confidence and share right, in percent, weighted by decisions; 0 without any."""
    total = sum(one.count for one in found)
    return 100 * sum(one.count * abs(one.confidence - one.right) for one in found) / max(1, total)
