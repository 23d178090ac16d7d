"""Many pods behind one name: who gets a request, bursts, lost pods, an autoscaler that is late, pods that start slowly.

Time goes in steps. Within a step pods run event by event (bench/simulation.py); between steps the fleet looks at them:
routing, losses and the autoscaler see the state of the step's beginning. For random routing and turns, which look at
nothing, that is exact; `two`, which compares queues, sees them as old as the step, as real balancers do.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil, inf
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from bench.simulation import Answers, Arrivals, Floats, Ints, Pods, Service

Routing = Literal["random", "turns", "two"]

# Bins of the histogram of latencies: from 0.1 ms to 100 s, each 2.3 % wider than the one before.
EDGES: Final = np.geomspace(1e-4, 100.0, 601)


@dataclass(frozen=True)
class Autoscaler:
    """A HorizontalPodAutoscaler: its controller's defaults, and how old the metrics are that it sees, seconds.

    https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/: every 15 s, ceil(pods * metric / target)
    unless that is within a tenth; up by at most as many again (or 4), down to the most wanted in 300 s.
    """

    target: float
    most: int
    least: int = 1
    every: float = 15.0
    lag: float = 15.0
    window: float = 15.0
    tolerance: float = 0.1
    down_after: float = 300.0


@dataclass(frozen=True)
class Loss:
    """A share of the pods dies `at` some second; `noticed` seconds later nothing is sent there, and new ones begin."""

    at: float
    share: float
    noticed: float = 10.0


@dataclass(frozen=True)
class Scene:
    """What is simulated. `rate`: requests a second by the second; `variation`: of work, as a share of its mean.

    New pods serve `start` seconds after they are wanted, `cold` times as slowly for the first `warm` seconds.
    """

    service: Service
    pods: int
    seconds: float
    rate: Callable[[float], float]
    routing: Routing = "random"
    variation: float = 0.0
    step: float = 0.25
    start: float = 20.0
    warm: float = 5.0
    cold: float = 2.0
    loss: Loss | None = None
    autoscaler: Autoscaler | None = None
    seed: int = 7


@dataclass
class Fleet:
    """The pods of a scene and what has become of requests, by the second in which they came."""

    scene: Scene
    latencies: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        """Let the first pods be ready and warm."""
        scene, most = self.scene, self.scene.autoscaler.most if self.scene.autoscaler else 0
        lost = ceil(scene.loss.share * max(most, scene.pods)) if scene.loss else 0
        size, self._seconds = max(most, scene.pods) + lost, ceil(scene.seconds)
        self._pods, self._chance = Pods(scene.service, size), np.random.default_rng(scene.seed)
        self._ready = np.where(np.arange(size) < scene.pods, -inf, inf)
        self._dead, self._gone = np.full(size, inf), np.full(size, inf)  # died at; nothing is sent there from
        self.latencies = np.zeros((self._seconds, len(EDGES) + 1), np.int64)
        columns = ("offered", "refused", "lost", "late", "ready", "wanted")
        self._counts = {name: np.zeros(self._seconds, np.int64) for name in columns}
        self._turn, self._busy, self._advice = 0, [(0.0, 0.0)], [(0.0, scene.pods)]

    def run(self) -> "Fleet":
        """Go through the scene, and on until all that came is answered."""
        scene, now, synced = self.scene, 0.0, 0.0
        while now < scene.seconds:
            second, end = int(now), min(now + scene.step, scene.seconds)
            self._pods.slow = np.where(now < self._ready + scene.warm, scene.cold, 1.0)
            if scene.loss and now <= scene.loss.at < end:
                self._lose(scene.loss, second)
            if scene.autoscaler and now >= synced + scene.autoscaler.every:
                self._scale(scene.autoscaler, now)
                synced = now
            serving = np.flatnonzero((self._ready <= now) & (now < self._gone))
            self._counts["ready"][second] = np.count_nonzero(self._dead[serving] > now)
            self._counts["wanted"][second] = self._wanted(now)
            before = self._pods.busy.sum()
            self._take(self._pods.advance(self._arrivals(now, end, serving, second), end), second)
            share = (self._pods.busy.sum() - before) / (end - now) / max(1, len(serving))
            self._busy.append((end, min(1.0, share)))
            now = end
        self._take(self._pods.advance(Arrivals(*(np.zeros(0, kind) for kind in (np.int64, float, float))), inf), second)
        return self

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each second: requests offered, answered in time, late, refused, lost; pods; quantiles."""
        answered = self.latencies.sum(axis=1)
        return [
            {"second": second}
            | {name: int(column[second]) for name, column in self._counts.items()}
            | {"in_time": int(answered[second] - self._counts["late"][second])}
            | {f"p{share}_s": round(self.quantile(share / 100, second, second + 1), 5) for share in (50, 99)}
            for second in range(self._seconds)
        ]

    def quantile(self, share: float, first: int = 0, last: int | None = None) -> float:
        """Return a quantile of the seconds of answers to what came from second `first` to `last`; NaN: none came."""
        counts = self.latencies[first:last].sum(axis=0)
        if not counts.sum():
            return float("nan")
        return float(np.interp(share * counts.sum(), np.cumsum(counts), np.append(EDGES, EDGES[-1])))

    def total(self, name: str) -> int:
        """Return a column's sum: offered, refused, lost, late, or answered."""
        return int(self.latencies.sum() if name == "answered" else self._counts[name].sum())

    def _arrivals(self, now: float, end: float, serving: Ints, second: int) -> Arrivals:
        scene = self.scene
        count = int(self._chance.poisson(scene.rate(now) * (end - now)))
        at = np.sort(self._chance.uniform(now, end, count))
        pods = self._route(serving, count, now)
        self._counts["offered"][second] += count
        alive = self._dead[pods] > at
        self._counts["lost"][second] += count - np.count_nonzero(alive)
        at, pods = at[alive], pods[alive]
        order = np.argsort(pods, kind="stable")
        return Arrivals(pods[order], at[order], self._work(len(order)))

    def _work(self, count: int) -> Floats:
        """Give log-normal seconds."""
        if not self.scene.variation:
            return np.full(count, self.scene.service.each)
        spread = np.sqrt(np.log1p(self.scene.variation**2))
        return self.scene.service.each * np.exp(self._chance.normal(-(spread**2) / 2, spread, count))

    def _route(self, serving: Ints, count: int, now: float) -> Ints:
        if self.scene.routing == "turns":
            self._turn += count
            return serving[np.arange(self._turn - count, self._turn) % len(serving)]
        one = serving[self._chance.integers(len(serving), size=count)]
        if self.scene.routing == "random":
            return one
        other = serving[self._chance.integers(len(serving), size=count)]
        length = self._pods.count + (self._pods.free > now)
        return np.where(length[other] < length[one], other, one)

    def _take(self, answers: Answers, second: int) -> None:
        self._counts["refused"][second] += answers.refused
        if not len(answers.at):
            return
        came = np.minimum(answers.at.astype(np.int64), self._seconds - 1)
        first, last = int(came.min()), int(came.max()) + 1
        shape = (last - first, self.latencies.shape[1])
        bins = (came - first) * shape[1] + np.searchsorted(EDGES, answers.seconds)
        self.latencies[first:last] += np.bincount(bins, minlength=shape[0] * shape[1]).reshape(shape)
        late = came[answers.seconds > self.scene.service.deadline] - first
        self._counts["late"][first:last] += np.bincount(late, minlength=shape[0])

    def _lose(self, loss: Loss, second: int) -> None:
        serving = np.flatnonzero((self._ready <= loss.at) & (self._gone == inf))
        dying = self._chance.choice(serving, int(loss.share * len(serving)), replace=False)
        self._counts["lost"][second] += self._pods.lose(dying)
        self._dead[dying], self._gone[dying] = loss.at, loss.at + loss.noticed
        self._begin(len(dying), loss.at + loss.noticed)

    def _begin(self, count: int, now: float) -> None:
        new = np.flatnonzero((self._ready == inf) & (self._gone == inf))[:count]
        self._ready[new] = now + self.scene.start

    def _wanted(self, now: float) -> int:
        return int(np.count_nonzero((self._ready < inf) & (self._gone > now) & (self._dead > now)))

    def _scale(self, scaler: Autoscaler, now: float) -> None:
        seen = [busy for at, busy in self._busy if now - scaler.lag - scaler.window < at <= now - scaler.lag]
        ready, wanted = np.flatnonzero((self._ready <= now) & (self._gone > now)), self._wanted(now)
        if not seen:
            return
        ratio = sum(seen) / len(seen) / scaler.target
        advice = wanted if abs(ratio - 1) <= scaler.tolerance else ceil(len(ready) * ratio)
        advice = min(max(advice, scaler.least), scaler.most)
        self._advice.append((now, advice))
        if advice > wanted:
            self._begin(min(advice, max(2 * wanted, wanted + 4)) - wanted, now)
        highest = max(pods for at, pods in self._advice if at >= now - scaler.down_after)
        if highest < wanted:
            self._gone[ready[highest - wanted :]] = now


def always(rate: float) -> Callable[[float], float]:
    """Return a rate that does not change."""
    return lambda _: rate


def spike(low: float, high: float, begin: float, end: float) -> Callable[[float], float]:
    """Return a rate that is `high` from `begin` to `end` seconds and `low` otherwise."""
    return lambda now: high if begin <= now < end else low


def bursts(low: float, high: float, calm: float, burst: float, seed: int) -> Callable[[float], float]:
    """Return a Markov-modulated rate: `low` for `calm` seconds on average, then `high` for `burst` seconds."""
    chance = np.random.default_rng(seed)
    ends = np.cumsum(np.where(np.arange(4096) % 2, burst, calm) * chance.exponential(size=4096))
    return lambda now: (low, high)[int(np.searchsorted(ends, now, side="right")) % 2]
