"""How many pods does a load need? Each pod is a queue that serves in batches; docs/capacity.md explains the model."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import ceil, exp, log, sqrt
from statistics import NormalDist
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.bulk_queue import MOST_UTILIZATION, Server, Times, response_times
from service.curve import Curve
from service.errors import StartupError

# Kubernetes Services pass no more endpoints on well before this; and so many pods are no plan but a mistake.
MOST_PODS: Final = 100_000
# What a server held under load, twice: a new version of a model is loaded beside the old one.
MEMORY_MARGIN: Final = 2.0
MEMORY_STEP: Final = 64 * 2**20
HOURS_A_MONTH: Final = 730
# Texts that stand for all: the middles of so many equally likely groups.
GROUPS: Final = 40
_P99: Final = NormalDist().inv_cdf(0.99)
# A log-normal distribution cannot have its 99th percentile farther above its mean than this.
MOST_P99_RATIO: Final = exp(_P99**2 / 2)


class Demand(BaseModel):
    """What is asked for: requests a second, their tokens, what their 99th percentile may take, CPUs of a pod.

    `tokens_p99` None: all requests are alike; else their tokens are log-normal. `spare`: pods that may be lost.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    qps: Annotated[float, Field(gt=0, le=1e8)]
    tokens: Annotated[float, Field(ge=2, le=1e6)]
    p99_ms: Annotated[float, Field(gt=0, le=600_000)]
    cores: Annotated[int, Field(ge=1, le=512)]
    tokens_p99: Annotated[float | None, Field(ge=2, le=1e6)] = None
    spare: Annotated[int, Field(ge=0, le=10_000)] = 1
    core_hour_price: Annotated[float | None, Field(ge=0)] = None
    gb_hour_price: Annotated[float | None, Field(ge=0)] = None


@dataclass(frozen=True)
class Load:
    """How so many pods fare: seconds of half and of 99 % of answers, mean size of batches, and how full they are.

    `utilization`: share of what they can serve. `cpu`: share of their CPUs' time; more, for full batches cost less.
    """

    pods: int
    utilization: float
    cpu: float
    p50: float
    p99: float
    batch: float


@dataclass(frozen=True)
class Plan:
    """What it takes. `needed` pods carry the load in time; `pods` are those and the spare ones; seconds and bytes.

    `capacity`: requests a second at which a pod is full. `alone`: p99 of a request that meets no other.
    """

    demand: Demand
    curve: Curve
    needed: Load
    pods: Load
    capacity: float
    alone: float
    memory_bytes: int
    bound: str

    @property
    def cores(self) -> int:
        """CPUs of all pods."""
        return self.pods.pods * self.demand.cores

    @property
    def total_bytes(self) -> int:
        """Memory of all pods."""
        return self.pods.pods * self.memory_bytes

    @property
    def cost_an_hour(self) -> float | None:
        """What all pods cost, in the currency of the prices; None where none was given."""
        prices = self.demand.core_hour_price, self.demand.gb_hour_price
        if prices == (None, None):
            return None
        return self.cores * (prices[0] or 0.0) + self.total_bytes / 1e9 * (prices[1] or 0.0)


def checked_demand(**values: Any) -> Demand:
    """Return the demand. Raises StartupError with option, value and limit where something is wrong."""
    try:
        demand = Demand(**values)
    except ValidationError as error:
        wrong = error.errors()[0]
        option = "--" + str(wrong["loc"][0]).replace("_", "-")
        raise StartupError(f"{option} is {wrong['input']}: {wrong['msg'][0].lower()}{wrong['msg'][1:]}") from None
    if demand.tokens_p99 is not None and not demand.tokens <= demand.tokens_p99 <= MOST_P99_RATIO * demand.tokens:
        raise StartupError(
            f"--tokens-p99 is {demand.tokens_p99:g}, with --tokens {demand.tokens:g} it must be between that and "
            f"{MOST_P99_RATIO * demand.tokens:.0f}: --tokens is the mean"
        )
    return demand


@dataclass(frozen=True)
class Pod:
    """One pod under one kind of requests. `front`: CPU seconds of a request that one thread alone can do.

    `server` has them, spread over the pod's CPUs, in the seconds of its batches: the engine waits for them or they for
    it. What else they take of an answer's time is `apart`.
    """

    server: Server
    front: float
    cores: int

    @property
    def capacity(self) -> float:
        """Requests a second at which it is full."""
        return min(self.server.capacity, 1 / self.front)

    @property
    def apart(self) -> float:
        """Seconds of an answer outside of batches."""
        return self.front * (1 - 1 / self.cores)

    def load(self, qps: float, pods: int) -> Load | None:
        """Return how `pods` of this kind fare where each request goes to any of them; None: they cannot serve them."""
        rate = qps / pods
        times = response_times(self.server, rate) if rate < MOST_UTILIZATION * self.capacity else None
        if times is None:
            return None
        p50, p99 = (self._seconds(times, rate, share) for share in (0.5, 0.99))
        cpu = min(1.0, rate * (self.server.fixed / times.batch + self.server.each))
        return Load(pods, rate / self.capacity, cpu, p50, p99, times.batch)

    def _seconds(self, times: Times, rate: float, share: float) -> float:
        """Add the wait for the thread of the front, an M/D/1 queue of its own where the pod has CPUs to spare.

        Its tail is taken as exponential: Abate, Choudhury, Whitt, Exponential approximations for tail probabilities in
        queues, Oper. Res. 43 (1995). Both quantiles added up are more than that of the sum.
        """
        busy = rate * self.front
        wait = self.front / (2 * (1 - busy)) * max(0.0, log(busy / (1 - share))) if self.cores > 1 else 0.0
        return times.quantile(share) + self.apart + wait


def pod(demand: Demand, curve: Curve) -> Pod:
    """Return a pod of the demand's CPUs under the demand's texts.

    Raises:
        StartupError: the curve does not say what so many threads do.
    """
    engine = curve.engine_with(demand.cores)
    work, front = [], []
    for tokens in text_lengths(demand.tokens, demand.tokens_p99):
        more_calls = engine.per_call * (max(1, ceil(tokens / curve.max_batch_tokens)) - 1)
        front.append(curve.outside(tokens))
        work.append(engine.sequences(tokens, curve.window) + more_calls + front[-1] / demand.cores)
    mean = sum(work) / len(work)
    variance = sum((one - mean) ** 2 for one in work) / len(work)
    most = max(1, int(curve.max_batch_tokens / demand.tokens))
    return Pod(Server(engine.per_call, mean, most, variance), sum(front) / len(front), demand.cores)


def text_lengths(mean: float, p99: float | None) -> list[float]:
    """Return tokens that stand for all texts: one length, or a log-normal distribution's with that mean and p99."""
    if p99 is None or p99 == mean:
        return [mean]
    # ln p99 = mu + z s and ln mean = mu + s^2 / 2, so s^2 / 2 - z s + ln(p99 / mean) = 0.
    spread = _P99 - sqrt(max(0.0, _P99**2 - 2 * log(p99 / mean)))
    centre = log(mean) - spread**2 / 2
    lengths = [exp(centre + spread * NormalDist().inv_cdf((n + 0.5) / GROUPS)) for n in range(GROUPS)]
    # The groups' middles miss the longest texts: give the mean back.
    return [length * mean * GROUPS / sum(lengths) for length in lengths]


def plan(demand: Demand, curve: Curve) -> Plan:
    """Return the fewest pods that answer 99 % of the demand in time, and the spare ones.

    Raises:
        StartupError: no number of pods does, because a request alone takes longer; or more than MOST_PODS would.
    """
    one, limit = pod(demand, curve), demand.p99_ms / 1e3
    alone = one.load(1e-6 * one.capacity, 1)
    assert alone is not None, "a millionth of the capacity is too much"
    if alone.p99 > limit:
        raise StartupError(_too_slow(demand, alone.p99))
    fewest = ceil(demand.qps / (MOST_UTILIZATION * one.capacity))
    needed = _fewest(lambda pods: one.load(demand.qps, pods), max(1, fewest), limit)
    if needed is None or needed.pods + demand.spare > MOST_PODS:
        raise StartupError(f"more than {MOST_PODS} pods would be needed: allow a longer --p99-ms, or more --cores")
    pods = one.load(demand.qps, needed.pods + demand.spare)
    assert pods is not None, "more pods serve less"
    memory = MEMORY_STEP * ceil(MEMORY_MARGIN * curve.resident_bytes / MEMORY_STEP)
    bound = _bound(one, needed, max(1, fewest))
    return Plan(demand, curve, needed, pods, one.capacity, alone.p99, memory, bound)


def _fewest(load: Callable[[int], Load | None], least: int, limit: float) -> Load | None:
    """Return the smallest load in time: p99 falls with the number of pods, so double it, then halve the steps."""
    low, high, found = least - 1, least, load(least)
    while found is None or found.p99 > limit:
        if high >= MOST_PODS:
            return None
        low, high = high, min(2 * high, MOST_PODS)
        found = load(high)
    while high - low > 1:
        middle = (low + high) // 2
        tried = load(middle)
        if tried is not None and tried.p99 <= limit:
            high, found = middle, tried
        else:
            low = middle
    return found


def _bound(one: Pod, needed: Load, fewest: int) -> str:
    if needed.pods > fewest:
        full = f"the p99: throughput alone would take {fewest}, full and late"
        return full if needed.utilization > 0.05 else f"{full}; the limit is close to what a request alone takes"
    if needed.pods == 1:
        return "nothing: one pod has room"
    if one.server.capacity > 1 / one.front:
        return "the one thread that does HTTP, JSON and tokens: more cores per pod will not help, more pods do"
    return "throughput: the pods are full before answers are late"


def _too_slow(demand: Demand, alone: float) -> str:
    more = "shorter texts, or more --cores in a pod"
    return (
        f"--p99-ms is {demand.p99_ms:g}, but a request that meets no other takes {1e3 * alone:.1f} ms with --cores "
        f"{demand.cores}, and more pods do not change that: allow more, or have {more}"
    )


def as_json(found: Plan) -> dict[str, Any]:
    """Return everything as plain JSON, in seconds, bytes and requests a second; `read_curve` finds the curve in it."""
    values = asdict(found) | {"demand": found.demand.model_dump(), "curve": found.curve.model_dump()}
    derived = {"cores": found.cores, "total_bytes": found.total_bytes, "cost_an_hour": found.cost_an_hour}
    return values | derived | {"rollout_pods": found.pods.pods + 1, "qps_per_pod": found.demand.qps / found.pods.pods}
