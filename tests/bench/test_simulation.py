"""Simulated pods: beside slow ones that anybody can read, closed forms, Little's law, no request lost or made up."""

import heapq
from collections import deque
from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.simulation import FULL_BATCHES, MARGIN, Answers, Arrivals, Pods, Service


def slow(service: Service, size: int, requests: list[tuple[int, float, float]]) -> tuple[list[float], int]:
    """One event after the other from a heap: the definition. Return the seconds of answers in order, and refusals."""
    events: list[tuple[float, int, int, float]] = [(at, 1, pod, work) for pod, at, work in requests]
    heapq.heapify(events)
    queues: list[deque[tuple[float, float]]] = [deque() for _ in range(size)]
    ends, seconds, refused = [0.0] * size, [], 0

    def begin(pod: int, now: float) -> None:
        batch = [queues[pod].popleft() for _ in range(min(service.most, len(queues[pod])))]
        ends[pod] = now + service.fixed + sum(work for _, work in batch)
        seconds.extend(ends[pod] - at for at, _ in batch)
        heapq.heappush(events, (ends[pod], 0, pod, 0.0))

    while events:
        now, kind, pod, work = heapq.heappop(events)
        if kind == 0:
            if queues[pod]:
                begin(pod, now)
            continue
        idle = ends[pod] <= now and not queues[pod]
        ahead = max(0.0, ends[pod] - now) + sum(other for _, other in queues[pod]) + work
        slack = FULL_BATCHES * service.most * service.each
        if not idle and service.admits and MARGIN * ahead + slack > service.deadline:
            refused += 1
            continue
        queues[pod].append((now, work))
        if idle:
            begin(pod, now)
    return sorted(seconds), refused


def sorted_arrivals(requests: list[tuple[int, float, float]]) -> Arrivals:
    ordered = sorted(requests, key=lambda request: request[:2])
    pods, at, work = zip(*ordered, strict=True) if ordered else ((), (), ())
    return Arrivals(np.array(pods, np.int64), np.array(at, float), np.array(work, float))


REQUESTS = st.lists(
    st.tuples(st.integers(0, 2), st.floats(0, 10, allow_subnormal=False), st.floats(0.01, 2)),
    max_size=60,
    unique_by=lambda request: request[1],
)


@given(REQUESTS, st.integers(1, 4), st.sampled_from([inf, 3.0, 8.0]), st.booleans(), st.floats(0.1, 9.9))
def test_pods_side_by_side_are_the_slow_ones(
    requests: list[tuple[int, float, float]], most: int, deadline: float, admits: bool, cut: float
) -> None:
    """In one step, or in two that cut the time anywhere."""
    service = Service(0.3, 0.5, most, deadline, admits)
    pods = Pods(service, 3, room=4)
    first = pods.advance(sorted_arrivals([request for request in requests if request[1] < cut]), cut)
    rest = pods.advance(sorted_arrivals([request for request in requests if request[1] >= cut]), inf)
    seconds, refused = slow(service, 3, requests)
    assert sorted(np.concatenate([first.seconds, rest.seconds])) == pytest.approx(seconds)
    assert first.refused + rest.refused == refused
    assert len(first.at) + len(rest.at) + refused == len(requests)
    assert pods.waiting == 0


def served(rate: float, work: str, *, fixed: float = 0.0, most: int = 1, pods: int = 50) -> Answers:
    chance = np.random.default_rng(3)
    count = 300_000
    at = np.sort(chance.uniform(0, count / rate / pods, count))
    pod = chance.integers(pods, size=count)
    order = np.argsort(pod, kind="stable")
    seconds = np.ones(count) if work == "same" else chance.exponential(size=count)
    answers = Pods(Service(fixed, 1.0, most), pods).advance(Arrivals(pod[order], at[order], seconds), inf)
    assert len(answers.at) == count
    return answers


@pytest.mark.parametrize("busy", [0.5, 0.8])
def test_m_m_1_and_m_d_1_come_out(busy: float) -> None:
    """M/M/1: answers within t with probability 1 - exp(-(1 - busy) t). M/D/1: mean 1 + busy / (2 (1 - busy))."""
    by_chance = served(busy, "exponential").seconds
    for share in (0.5, 0.9, 0.99):
        assert np.quantile(by_chance, share) == pytest.approx(-np.log(1 - share) / (1 - busy), rel=0.05)
    assert served(busy, "same").seconds.mean() == pytest.approx(1 + busy / (2 * (1 - busy)), rel=0.03)


def test_littles_law() -> None:
    """The mean number in the system is the rate times the mean time there: counted at moments, not summed."""
    answers = served(0.8, "exponential", fixed=0.5, most=8)
    end = answers.at.max()
    came, left = np.sort(answers.at), np.sort(answers.at + answers.seconds)
    moments = np.linspace(0.1 * end, 0.9 * end, 20_000)
    inside = np.searchsorted(came, moments) - np.searchsorted(left, moments)
    assert inside.mean() == pytest.approx(len(answers.at) / end * answers.seconds.mean(), rel=0.02)


def test_what_waits_at_a_lost_pod_is_counted_and_forgotten() -> None:
    pods = Pods(Service(0.0, 1.0, 1), 2)
    first = pods.advance(sorted_arrivals([(0, 0.1 * n, 1.0) for n in range(5)] + [(1, 0.05, 1.0)]), 0.5)
    assert len(first.at) == 2
    assert pods.lose(np.array([0])) == 4
    assert len(pods.advance(sorted_arrivals([]), inf).at) == 0
