"""The prediction of the engine's time follows the machine, and one odd batch does not confuse it."""

from typing import Any

import pytest

from service import cost
from service.cost import MANY, MANY_LENGTH, OUTLIER, SHORT, Cost, measured


@pytest.mark.parametrize(("call", "token", "square"), [(1e-3, 1e-4, 1e-7), (0.0, 2e-5, 0.0), (5e-3, 1e-5, 1e-6)])
def test_measuring_finds_the_terms(monkeypatch: pytest.MonkeyPatch, call: float, token: float, square: float) -> None:
    clock, batches = [0.0], []

    def forward(ids: Any, lengths: Any, types: Any) -> None:
        assert types is None and len(ids) == lengths.sum() and set(ids.tolist()) == {7}
        batches.append(lengths.tolist())
        clock[0] += call + sum(n * (token + n * square) for n in lengths.tolist())

    monkeypatch.setattr(cost, "perf_counter", lambda: clock[0])
    found = measured(forward, 256, 7)
    assert {tuple(batch) for batch in batches} == {(SHORT,), (MANY_LENGTH,) * MANY, (256,)}
    for windows in ([8], [100, 30, 256], [256] * 4):
        real = call + sum(n * (token + n * square) for n in windows)
        # The call's own time is spread over tokens where many short sequences are timed: a little off.
        assert found.call(found.window(n) for n in windows) == pytest.approx(real, rel=0.3)


def test_a_slow_model_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [0.0], []

    def forward(ids: Any, *_: Any) -> None:
        calls.append(len(ids))
        clock[0] += 1.0

    monkeypatch.setattr(cost, "perf_counter", lambda: clock[0])
    measured(forward, 64, 0)
    assert len(calls) == 3


def test_the_correction_follows_a_machine_that_gets_slower_and_faster() -> None:
    one = Cost(0.0, 1e-3, 0.0)
    for slowness in (3.0, 1.0, 0.5):
        for _ in range(200):
            one.observe(0.1, 0.1 * slowness)
        assert one.scale == pytest.approx(slowness, rel=0.05)


def test_one_batch_that_was_stopped_for_a_minute_counts_little() -> None:
    one = Cost(0.0, 1e-3, 0.0)
    for _ in range(100):
        one.observe(0.02, 0.02)
    one.observe(0.02, 60.0)
    assert one.scale < 1 + 2 * OUTLIER * 0.02
