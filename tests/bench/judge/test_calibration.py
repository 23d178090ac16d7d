"""Calibration: the error as its paper writes it, in a plain loop."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.judge.calibration import BINS, bins, expected_error
from bench.judge.outcomes import Decision


def decision(confidence: float, worth: float) -> Decision:
    return Decision(0, "", "a", "b", confidence, worth)


def slow(decisions: list[Decision]) -> float:
    """Guo et al., equation 3: bin m holds what lies in ((m - 1) / M, m / M]."""
    total = 0.0
    for m in range(1, BINS + 1):
        inside = [d for d in decisions if (m - 1) / BINS < d.confidence <= m / BINS]
        if inside:
            right = sum(d.worth == 1 for d in inside) / len(inside)
            sure = sum(d.confidence for d in inside) / len(inside)
            total += len(inside) / len(decisions) * abs(right - sure)
    return 100 * total


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.001, 1), st.sampled_from([0.0, 0.4, 1.0])), min_size=1, max_size=60))
def test_the_error_is_the_papers(values: list[tuple[float, float]]) -> None:
    decisions = [decision(*value) for value in values if abs(value[0] * BINS - round(value[0] * BINS)) > 1e-9]
    found = bins(decisions)
    assert expected_error(found) == pytest.approx(slow(decisions) if decisions else 0)
    assert sum(one.count for one in found) == len(decisions)


def test_one_who_is_as_right_as_sure_has_no_error_and_a_braggart_has() -> None:
    random = np.random.default_rng(0)
    sure = random.random(20_000)
    right = (random.random(20_000) < sure).astype(float)
    honest = [decision(float(c), float(r)) for c, r in zip(sure, right, strict=True)]
    assert expected_error(bins(honest)) < 2
    assert expected_error(bins([decision(1.0, 0.0), decision(1.0, 1.0)])) == 50
    assert [one.high for one in bins([decision(1.0, 1.0)])] == [1.0]
