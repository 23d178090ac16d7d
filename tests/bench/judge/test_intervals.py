"""Intervals: as a plain loop draws them, as theory has them, and what being drawn together means."""

import random
import statistics

import numpy as np
import pytest

from bench.judge.intervals import interval, loss
from bench.judge.outcomes import Outcomes


def outcomes(gained: list[float], possible: list[float] | None = None, together: list[int] | None = None) -> Outcomes:
    count = len(gained)
    return Outcomes(
        np.array(gained, np.float64),
        np.array(possible or [1.0] * count),
        np.array(together or range(count)),
        np.ones(count, np.int64),
        (),
    )


def slow(one: Outcomes, draws: int = 4000) -> tuple[float, float]:
    """Draw groups with replacement, one by one."""
    chance = random.Random(5)
    groups = sorted(set(one.together.tolist()))
    members = {group: [i for i, g in enumerate(one.together) if g == group] for group in groups}
    scores = []
    for _ in range(draws):
        drawn = [i for _ in groups for i in members[chance.choice(groups)]]
        scores.append(100 * sum(one.gained[i] for i in drawn) / max(1e-12, sum(one.possible[i] for i in drawn)))
    cuts = statistics.quantiles(scores, n=40)
    return cuts[0], cuts[-1]


def test_an_interval_is_what_a_plain_loop_draws() -> None:
    chance = np.random.default_rng(1)
    possible = chance.integers(1, 6, 60).astype(float)
    one = outcomes((possible * chance.random(60)).tolist(), possible.tolist(), (np.arange(60) // 3).tolist())
    assert interval(one) == pytest.approx(slow(one), abs=1.0)
    assert interval(one) == interval(one), "the seed is fixed"


def test_the_interval_of_a_share_is_the_binomials() -> None:
    low, high = interval(outcomes([1.0] * 800 + [0.0] * 200))
    width = 1.96 * 100 * (0.8 * 0.2 / 1000) ** 0.5
    assert (low, high) == pytest.approx((80 - width, 80 + width), abs=0.4)


def test_examples_that_go_together_say_less() -> None:
    gained = [1.0, 1.0, 0.0, 0.0] * 50
    alone, pairs = outcomes(gained), outcomes(gained, together=(np.arange(200) // 2).tolist())
    widths = [high - low for low, high in map(interval, (alone, pairs))]
    assert widths[1] == pytest.approx(widths[0] * 2**0.5, rel=0.15)


def test_a_loss_is_relative_and_drawn_in_pairs() -> None:
    chance = np.random.default_rng(2)
    dense = (chance.random(500) < 0.9).astype(float)
    sparse = dense.copy()
    sparse[np.flatnonzero(dense)[:9]] = 0
    lost, low, high = loss(outcomes(sparse.tolist()), outcomes(dense.tolist()))
    assert lost == pytest.approx(100 * 9 / dense.sum())
    assert 0 < low < lost < high < 4, "two scores apart would be uncertain by three points each"
    assert loss(outcomes(dense.tolist()), outcomes(dense.tolist())) == (0, 0, 0)


def test_nothing_to_gain_is_a_score_of_0() -> None:
    empty = outcomes([0.0, 0.0], [0.0, 0.0])
    assert empty.score == 0
    assert interval(empty) == (0, 0)
