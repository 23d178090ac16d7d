"""Fleets: every request ends somewhere, the model's times come out; losses, bursts, autoscalers, cold pods."""

import heapq
from dataclasses import replace

import numpy as np
import pytest

from bench.fleet import Autoscaler, Fleet, Loss, Scene, always, bursts, spike
from bench.simulation import Service
from service.bulk_queue import Server, response_times

SERVICE = Service(0.002, 0.01, 6, deadline=0.5)
CAPACITY = Server(0.002, 0.01, 6).capacity


def scene(**changes: object) -> Scene:
    base = Scene(SERVICE, 20, 30.0, always(0.7 * CAPACITY * 20), variation=0.5)
    return replace(base, **changes)  # type: ignore[arg-type]


def balanced(fleet: Fleet) -> bool:
    ended = sum(fleet.total(name) for name in ("answered", "refused", "lost"))
    return fleet.total("offered") == ended > 0


@pytest.mark.parametrize("busy", [0.4, 0.7, 0.85])
def test_a_steady_fleet_takes_as_long_as_the_model_says(busy: float) -> None:
    served = replace(SERVICE, admits=False)
    fleet = Fleet(scene(service=served, pods=40, seconds=80.0, rate=always(busy * CAPACITY * 40))).run()
    times = response_times(Server(0.002, 0.01, 6, (0.5 * 0.01) ** 2), busy * CAPACITY)
    assert times is not None
    assert balanced(fleet)
    for share in (0.5, 0.99):
        assert fleet.quantile(share, 10) == pytest.approx(times.quantile(share), rel=0.08)


def test_turns_and_routing_that_looks_are_better_than_chance() -> None:
    p99 = {
        kind: Fleet(scene(routing=kind, step=step, seconds=12.0)).run().quantile(0.99, 2)
        for kind, step in (("random", 0.25), ("turns", 0.25), ("two", 0.005))
    }
    assert max(p99["two"], p99["turns"]) < 0.9 * p99["random"]


def test_the_shorter_of_two_queues_is_what_an_exact_simulation_gives() -> None:
    """Looked at every 2 ms, a fifth of the time of a request, beside a balancer that always knows."""
    served = Service(0.002, 0.01, 1)
    rate = 0.7 * 20 / 0.012
    fleet = Fleet(Scene(served, 20, 20.0, always(rate), "two", step=0.002)).run()
    exact = exactly_two(20, rate, 20.0, 0.012)
    for share in (0.5, 0.9, 0.99):
        assert fleet.quantile(share, 2) == pytest.approx(float(np.quantile(exact, share)), rel=0.12)


def exactly_two(size: int, rate: float, seconds: float, work: float) -> list[float]:
    """Each request goes to the shorter of two queues, as they are at that moment."""
    chance = np.random.default_rng(1)
    lengths, ends, answers = [0] * size, [0.0] * size, []
    leaving: list[tuple[float, int]] = []
    for now in np.cumsum(chance.exponential(1 / rate, int(rate * seconds))):
        while leaving and leaving[0][0] <= now:
            lengths[heapq.heappop(leaving)[1]] -= 1
        one, other = chance.integers(size, size=2)
        pod = int(other if lengths[other] < lengths[one] else one)
        ends[pod] = max(ends[pod], float(now)) + work
        lengths[pod] += 1
        heapq.heappush(leaving, (ends[pod], pod))
        answers.append(ends[pod] - float(now))
    return answers


def test_admission_keeps_goodput_where_trust_loses_it() -> None:
    twice = always(2 * CAPACITY * 20)
    admitting = Fleet(scene(rate=twice)).run()
    trusting = Fleet(scene(rate=twice, service=replace(SERVICE, admits=False))).run()
    assert balanced(admitting) and balanced(trusting)
    assert admitting.total("late") < 0.01 * admitting.total("answered")
    assert admitting.total("answered") > 0.85 * CAPACITY * 20 * 30
    assert trusting.total("late") > 0.8 * trusting.total("answered")


def test_a_loss_costs_what_is_sent_before_it_is_noticed() -> None:
    fleet = Fleet(
        scene(rate=always(0.5 * CAPACITY * 20), seconds=60.0, loss=Loss(10, 0.2, noticed=5), start=10.0)
    ).run()
    assert balanced(fleet)
    rows = fleet.rows()
    assert [rows[second]["ready"] for second in (9, 12, 20, 40)] == [20, 16, 16, 20]
    assert {row["wanted"] for row in rows} == {20}
    assert sum(row["lost"] for row in rows[16:]) == 0
    assert sum(row["lost"] for row in rows[10:15]) == pytest.approx(0.2 * 5 * 0.5 * CAPACITY * 20, rel=0.15)


def test_an_autoscaler_is_late_by_its_lag_and_the_start_and_slow_to_shrink() -> None:
    scaler = Autoscaler(target=0.6, most=80, least=10, down_after=60.0)
    rate = spike(0.5 * CAPACITY * 20, CAPACITY * 20, 31, 100)
    fleet = Fleet(scene(rate=rate, seconds=300.0, autoscaler=scaler, start=20.0)).run()
    rows = fleet.rows()
    assert balanced(fleet)
    assert [row["ready"] for row in rows[:60]] == [20] * 60
    first = next(row["second"] for row in rows if row["wanted"] > 20)
    assert 45 <= first <= 75
    assert next(row["second"] for row in rows if row["ready"] > 20) == pytest.approx(first + 20, abs=1)
    assert max(row["ready"] for row in rows) >= 32
    assert rows[160]["ready"] >= 32 and rows[299]["ready"] <= 24


def test_new_pods_are_slow_while_they_are_cold() -> None:
    quick = Fleet(scene(rate=always(10.0), pods=1, seconds=40.0)).run()
    lost = scene(rate=always(10.0), pods=2, seconds=40.0, loss=Loss(1, 0.5, noticed=1), start=1.0, warm=100.0, cold=5.0)
    assert Fleet(lost).run().quantile(0.9, 5) > 2 * quick.quantile(0.9, 5)


def test_bursts_switch_between_two_rates() -> None:
    rate = bursts(1.0, 5.0, 30.0, 10.0, seed=1)
    seen = [rate(0.5 * n) for n in range(20_000)]
    assert set(seen) == {1.0, 5.0}
    assert seen.count(5.0) / len(seen) == pytest.approx(0.25, abs=0.05)
