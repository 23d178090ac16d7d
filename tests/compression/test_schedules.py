import pytest

from compression import schedules
from compression.recipe import Prune, Training

TRAINING = Training(epochs=30, learning_rate=8e-5)


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(-1.0, 0.0), (0.0, 0.0), (0.25, 0.9 * 37 / 64), (0.5, 0.9 * 7 / 8), (1.0, 0.9), (2.0, 0.9)],
)
def test_cubic_schedule_by_hand(progress: float, expected: float) -> None:
    assert schedules.cubic_sparsity(progress, 0.9) == pytest.approx(expected, abs=1e-12)


def test_cubic_schedule_from_a_first_step() -> None:
    found = [schedules.cubic_sparsity(p / 4, 0.9, 0.7) for p in range(5)]
    assert found == pytest.approx([0.7, 0.9 - 0.2 * 27 / 64, 0.9 - 0.2 / 8, 0.9 - 0.2 / 64, 0.9])


def test_updates_by_steps_then_hold() -> None:
    prune = Prune(0.8, TRAINING, start=0.2, end=0.6, update_every=2, initial=0.4)
    found = [schedules.wanted_sparsity(step, 10, prune) for step in range(10)]
    assert found == [None, None, pytest.approx(0.4), None, pytest.approx(0.75), None, pytest.approx(0.8), *[None] * 3]


def test_updates_go_on_at_the_final_sparsity_while_masks_are_reselected() -> None:
    prune = Prune(0.8, TRAINING, end=0.4, update_every=3, reselect_until=0.8)
    found = [schedules.wanted_sparsity(step, 10, prune) for step in range(10)]
    final = pytest.approx(0.8)
    early = [0.0, None, None, pytest.approx(0.8 * 63 / 64)]
    assert found == [*early, final, None, final, None, final, None]


def test_updates_at_epochs_as_obert_publishes_them() -> None:
    """oBERT on SQuAD: 70 % after two epochs, every four epochs on the cubic to 90 %, held for the last four."""
    prune = Prune(0.9, TRAINING, initial=0.7, at_epochs=(2, 6, 10, 14, 18, 22, 26))
    found = {step: schedules.wanted_sparsity(step, 3000, prune) for step in range(3000)}
    updates = {step: value for step, value in found.items() if value is not None}
    cubic = [0.9 - 0.2 * (1 - k / 6) ** 3 for k in range(7)]
    assert updates == {200 + 400 * k: pytest.approx(cubic[k]) for k in range(7)}


def test_a_single_epoch_prunes_to_the_end_at_once() -> None:
    prune = Prune(0.9, TRAINING, initial=0.7, at_epochs=(1.5,))
    assert schedules.wanted_sparsity(5, 100, prune) == pytest.approx(0.9)


def test_rates_fall_to_the_lowest_and_rewind() -> None:
    rewinds = (2.0, 6.0)
    rates = [schedules.cyclic_rate(epoch, rewinds, 10, 9.0, 1.0) for epoch in (0, 1, 1.75, 2, 3, 5, 6, 8, 9.5)]
    assert rates == pytest.approx([9, 5, 2, 9, 7, 3, 9, 5, 2])


def test_without_rewinds_one_line_from_highest_to_lowest() -> None:
    assert schedules.cyclic_rate(5, (), 10, 9.0, 1.0) == pytest.approx(5.0)


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_however_short_a_run_it_reaches_its_sparsity(steps: int) -> None:
    for prune in (
        Prune(0.9, TRAINING, start=0.9, end=1.0),
        Prune(0.9, TRAINING, update_every=3, end=0.01),
        Prune(0.9, TRAINING, initial=0.7, at_epochs=(0, 29, 29.9)),
        Prune(0.9, TRAINING, end=0.5, reselect_until=1.0),
    ):
        wanted = [schedules.wanted_sparsity(step, steps, prune) for step in range(steps)]
        reached = [value for value in wanted if value is not None]
        assert reached == sorted(reached) and reached[-1] == pytest.approx(0.9)
