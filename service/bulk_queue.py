"""How long do answers take where whatever waits goes into the next batch? Arithmetic on a Markov chain, no clock.

The bulk-service queue M/G[1,N]/1: requests come by chance, one server takes all that wait, N at most, and works for
`fixed + n * each` seconds; everybody in the batch is answered at its end. Bailey, On queueing processes with bulk
service, J. R. Stat. Soc. B 16 (1954), solved it by the chain of the numbers that wait when a batch ends; here that
chain is solved by numpy, and the times of answers are summed up over all that a newcomer can find.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Moments of a batch at which a newcomer may come, and how far apart the points of a normal distribution are that stand
# for it; at each moment they lie a little elsewhere, so that quantiles fall between few points nowhere.
MOMENTS: Final = 8
STEP, FARTHEST = 0.8, 4.0
# Edges of the bins of seconds, each 1 % wider than the one before.
EDGES: Final = np.geomspace(1e-5, 1e4, 2083)
# The chain is cut where the probability of more is below this; beyond that many states a queue counts as full.
NEGLIGIBLE: Final = 1e-7
MOST_STATES: Final = 2048
# What is as rare as this changes no 99th percentile.
RARE: Final = 1e-5
# Closer to its limit than this a queue is as long as chance has had time to make it: there is no answer to give.
MOST_UTILIZATION: Final = 0.985


@dataclass(frozen=True)
class Server:
    """Seconds of a batch of n: `fixed + n * each`, with variance `n * variance`; `most`: the largest n."""

    fixed: float
    each: float
    most: int
    variance: float = 0.0

    @property
    def capacity(self) -> float:
        """Requests a second where all batches are full."""
        return self.most / (self.fixed + self.most * self.each)

    def seconds(self, count: Array, normal: Array, variance: Array | float = 0.0) -> Array:
        """Return the seconds of batches of `count` at points of a normal distribution, which broadcast with it.

        They are log-normal, of that mean and variance; `variance` is added: that of the count, in seconds.
        """
        mean = self.fixed + count * self.each
        spread = np.sqrt(np.log1p((count * self.variance + variance) / mean**2))
        return np.asarray(mean * np.exp(spread * normal - spread**2 / 2))


@dataclass(frozen=True)
class Times:
    """The distribution of seconds from arrival to answer: `below` the share that takes less than each of EDGES.

    `mean` is that of the seconds, `batch` the mean number of requests in a batch.
    """

    below: Array
    mean: float
    batch: float

    def quantile(self, share: float) -> float:
        """Return the seconds within which that share is answered."""
        return float(EDGES[min(int(np.searchsorted(self.below, share)), len(EDGES) - 1)])


def response_times(server: Server, rate: float) -> Times | None:
    """Return the times of answers at `rate` requests a second, by chance (Poisson); None: more than it can serve."""
    if rate >= MOST_UTILIZATION * server.capacity:
        return None
    waiting = _waiting(server, rate)
    if waiting is None:
        return None
    weights = _answers(server, rate, waiting)
    batch = waiting @ np.clip(np.arange(len(waiting)), 1, server.most)
    return Times(np.cumsum(weights[:, 0]), float(weights[:, 1].sum()), float(batch))


def _points(shift: float = 0.0, step: float = STEP) -> tuple[Array, Array]:
    """Return points [P] of a normal distribution, `step` apart and moved by `shift` of it, and their weights [P].

    For smooth functions such a sum is the integral.
    """
    normal = np.arange(-FARTHEST + shift * step, FARTHEST + step / 2, step)
    weights = np.exp(-(normal**2) / 2)
    return normal, weights / weights.sum()


def _waiting(server: Server, rate: float) -> Array | None:
    """Return the probability [K] of each number of requests that wait when a batch ends; None: K would be too many."""
    states = 2 * server.most + 32
    while states <= MOST_STATES:
        found = _stationary(_transitions(server, rate, states))
        if found[-max(1, states // 16) :].sum() < NEGLIGIBLE:
            return found
        states *= 2
    return None


def _transitions(server: Server, rate: float, states: int) -> Array:
    """Return [K, K]: from so many that wait at the end of a batch to so many at the end of the next."""
    first = np.maximum(np.arange(states), 1)  # nobody waits: the next batch is the first newcomer, alone
    taken = np.minimum(first, server.most)
    normal, weights = _points()
    seconds = server.seconds(np.arange(1.0, server.most + 1)[:, None], normal)
    new = np.einsum("ntk,t->nk", _poisson(rate * seconds, states), weights)
    result = np.zeros((states, states))
    for start in range(states):
        left = first[start] - taken[start]
        result[start, left:] = new[taken[start] - 1, : states - left]
        result[start, -1] += 1 - result[start].sum()
    return result


def _poisson(mean: Array, states: int) -> Array:
    """Return the probabilities [..., K] of 0 to K-1 arrivals where `mean` [...] are expected."""
    numbers = np.arange(states)
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, states)))])
    return np.asarray(np.exp(numbers * np.log(mean[..., None]) - mean[..., None] - factorials))


def _stationary(transitions: Array) -> Array:
    """Return the distribution that a step of the chain leaves as it is."""
    size = len(transitions)
    equations = transitions.T - np.eye(size)
    equations[-1] = 1.0
    return np.asarray(np.maximum(np.linalg.solve(equations, np.eye(size)[-1]), 0.0))


def _answers(server: Server, rate: float, waiting: Array) -> Array:
    """Return of each bin of EDGES how likely an answer's seconds are in it, and those seconds times that.

    Whoever comes to an idle server is a batch alone. Anybody else comes at some moment of a batch, waits for its end,
    for the full batches of those in front, and for their own batch, in which those are too that came soon after.
    """
    normal, likely = _points(step=STEP / MOMENTS)
    found = _binned(server.seconds(np.ones(1), normal), waiting[0] * likely)
    began = waiting.copy()
    began[1] += began[0]
    began[0] = 0.0
    normal, likely = _points()
    full = server.most / server.capacity
    moments = (np.arange(MOMENTS) + 0.5) / MOMENTS
    own_normal, own_likely = (np.array(column) for column in zip(*map(_points, moments - 0.5), strict=True))
    for start in np.flatnonzero(began > RARE):
        count = min(int(start), server.most)
        seconds = server.seconds(np.array(float(count)), normal)
        passed = seconds[:, None] * moments  # [P, M]
        before = int(rate * seconds.max() + 6 * np.sqrt(rate * seconds.max()) + 6)
        chance = began[start] * rate * (likely * seconds)[:, None, None] * _poisson(rate * passed, before) / MOMENTS
        point, moment, ahead = some = np.nonzero(chance > RARE * began[start])
        batches, place = np.divmod(ahead + start - count, server.most)
        rest = seconds[point] - passed[point, moment] + batches * full
        size = np.minimum(server.most, place + 1 + rate * rest)
        counted = np.where(size < server.most, rate * rest * server.each**2, 0.0)
        own = server.seconds(size[:, None], own_normal[moment], counted[:, None])
        found += _binned(rest[:, None] + own, chance[some][:, None] * own_likely[moment])
    return np.asarray(found / found[:, 0].sum())


def _binned(seconds: Array, weights: Array) -> Array:
    places = np.searchsorted(EDGES, seconds.ravel())
    flat = weights.ravel()
    return np.stack([np.bincount(places, each, len(EDGES) + 1) for each in (flat, flat * seconds.ravel())], axis=1)
