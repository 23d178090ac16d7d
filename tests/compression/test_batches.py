from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compression.batches import FreshPlan, count_steps, plan_batches, plan_evaluation

LENGTHS = st.lists(st.integers(2, 60), min_size=1, max_size=300)


@given(lengths=LENGTHS, size=st.integers(1, 20), epochs=st.integers(1, 3), seed=st.integers(0, 9))
def test_every_epoch_sees_every_window_once(lengths: list[int], size: int, epochs: int, seed: int) -> None:
    plan = plan_batches(lengths, size, epochs, seed)
    assert Counter(i for batch in plan for i in batch) == dict.fromkeys(range(len(lengths)), epochs)
    assert all(1 <= len(batch) <= size for batch in plan)
    assert plan == plan_batches(lengths, size, epochs, seed)


@given(lengths=LENGTHS, size=st.integers(1, 20), epochs=st.floats(0.1, 2.5))
def test_a_shorter_run_is_the_beginning_of_a_longer_one(lengths: list[int], size: int, epochs: float) -> None:
    short, long = plan_batches(lengths, size, epochs, 1), plan_batches(lengths, size, 3, 1)
    assert len(short) == max(1, round(epochs * -(-len(lengths) // size)))
    assert short == long[: len(short)]


def test_seeds_differ_and_batches_hold_similar_lengths() -> None:
    lengths = [i % 50 + 2 for i in range(1000)]
    plan = plan_batches(lengths, 10, 1, 0)
    assert plan != plan_batches(lengths, 10, 1, 1)
    spread = [max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in plan]
    assert sum(spread) / len(spread) < 3


@given(LENGTHS)
def test_evaluation_covers_each_window_once(lengths: list[int]) -> None:
    plan = plan_evaluation(lengths, 7)
    assert sorted(i for batch in plan for i in batch) == list(range(len(lengths)))


@pytest.mark.parametrize(
    ("windows", "size", "epochs", "steps", "expected"),
    [(10, 4, 1.0, 0, 3), (10, 4, 2.5, 0, 8), (10, 4, 0.01, 0, 1), (10, 4, 0.0, 7, 7)],
)
def test_the_length_of_a_run_by_hand(windows: int, size: int, epochs: float, steps: int, expected: int) -> None:
    assert count_steps(windows, size, epochs, steps) == expected
    assert len(plan_batches([5] * windows, size, epochs, 0, steps)) == expected


@given(lengths=LENGTHS, size=st.integers(1, 20), steps=st.integers(1, 60), seed=st.integers(0, 9))
def test_a_fresh_plan_is_the_plan_with_new_numbers_in_every_epoch(
    lengths: list[int], size: int, steps: int, seed: int
) -> None:
    fresh = FreshPlan(np.asarray(lengths), size, steps, seed)
    plain = plan_batches(lengths, size, 0.0, seed, steps)
    assert len(fresh) == steps
    assert [[number % len(lengths) for number in batch] for batch in fresh] == plain
    numbers = [number for batch in fresh for number in batch]
    whole = len(numbers) // len(lengths) * len(lengths)
    assert sorted(numbers[:whole]) == list(range(whole))
    assert fresh[steps - 1] == list(fresh)[-1]  # any order of asking
