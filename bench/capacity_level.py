"""The capacity level: is `sparselane plan` right? Beside the real service under load, and beside simulated fleets."""

import asyncio
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Final

import engine
from bench.fleet import Autoscaler, Fleet, Loss, Routing, Scene, always, bursts, spike
from bench.footprint import ROOT, apart, service
from bench.http_level import quantiles
from bench.load_generator import Connections, Request, offer, poisson, saturate
from bench.simulation import Service
from service.bulk_queue import Server
from service.capacity import Demand, Pod, pod, text_lengths
from service.curve import Curve
from service.measuring import measure_curve

Row = dict[str, Any]
MODELS: Final = ROOT / "service" / "models"
MAX_BATCH_TOKENS: Final = 1024
# Model, mean tokens and their 99th percentile: paragraphs with questions; short sentences, where HTTP costs most.
WORKLOADS: Final = {"qa": (128, 320), "sentiment": (20, 60)}
SHARES: Final = (0.3, 0.5, 0.7, 0.85)
SIMULATED_SHARES: Final = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
CLIENTS: Final = 32
SATURATE_SECONDS: Final = 4.0
DEADLINE_SECONDS: Final = 1.0
SEED: Final = 11


@dataclass(frozen=True)
class Size:
    """How much is measured and simulated.

    Seconds of each rate; requests and least seconds of a steady simulation; pods of a small and of the large fleet; and
    how much faster than in FULL the scenes go by.
    """

    load_seconds: float
    requests: float
    steady_seconds: float
    small: int
    large: int
    hurry: float


FULL: Final = Size(load_seconds=12.0, requests=2e6, steady_seconds=20.0, small=500, large=10_000, hurry=1.0)
QUICK: Final = Size(load_seconds=0.7, requests=2e4, steady_seconds=2.0, small=20, large=30, hurry=6.0)


def measure(size: Size, progress: Callable[[str], None]) -> Iterator[tuple[str, list[Row]]]:
    """Give name and rows of each CSV file when they are there. Raises RuntimeError for a wrong answer or none."""
    curves: dict[str, Curve] = {}
    for name in WORKLOADS:
        progress(f"{name}: what a request costs here")
        curves[name] = measure_curve(MODELS / name, MAX_BATCH_TOKENS, min(2, engine.threads_from_quota()), progress)
    yield "curves", [_curve_row(curve) for curve in curves.values()]
    yield "load", load_test(curves, size, progress)
    one, variation = simulated_pod(curves["qa"])
    yield "steady", list(steady(one, variation, size, progress))
    yield "routing", list(routing(one, variation, size, progress))
    yield from timelines(one, variation, size, progress)


def _curve_row(curve: Curve) -> Row:
    row: Row = {"model": curve.model}
    for threads, seconds in curve.engine.items():
        row |= {f"{name}_{threads}_threads_s": value for name, value in seconds.model_dump().items()}
    row |= {"per_request_s": curve.per_request, "per_request_token_s": curve.per_request_token}
    return row | {"resident_bytes": curve.resident_bytes}


# ---- beside the real service


def load_test(curves: dict[str, Curve], size: Size, progress: Callable[[str], None]) -> list[Row]:
    """Offer each workload to a pod of one CPU at shares of what the plan says that it can do."""
    rows: list[Row] = []
    with apart() as pin, service(None, 1) as (process, port, probe_port):
        pin(process.pid)
        for name, (mean, p99) in WORKLOADS.items():
            requests, tokens = asyncio.run(_requests(port, name, mean, p99))
            demand = Demand(qps=1, tokens=tokens, tokens_p99=p99 * tokens / mean, p99_ms=1000, cores=1)
            one = pod(demand, curves[name])
            rows += asyncio.run(_rates(port, probe_port, name, requests, one, size.load_seconds, progress))
    return rows


async def _requests(port: int, model: str, mean: float, p99: float) -> tuple[list[Request], float]:
    """Return requests whose texts have log-normal lengths, and the mean tokens that the model reads of them."""
    connections, requests, tokens = Connections("127.0.0.1", port), [], []
    for length in text_lengths(mean, p99):
        words = "the river " * max(1, round((length - (6 if model == "qa" else 2)) / 2))
        item: Any = {"question": "when", "context": words} if model == "qa" else words
        path = {"qa": "/v1/question-answering", "sentiment": "/v1/text-classification"}[model]
        request = Request(path, json.dumps({"inputs": item}).encode())
        answer = await connections.post(request)
        if answer.status != 200:
            raise RuntimeError(f"{model}: status {answer.status}: {answer.body[:200]!r}; nothing is timed")
        tokens.append(json.loads(answer.body)["usage"]["tokens"])
        requests.append(replace(request, expected=answer.body))
    connections.close()
    return requests, sum(tokens) / len(tokens)


async def _rates(
    port: int,
    probe_port: int,
    name: str,
    requests: list[Request],
    one: Pod,
    seconds: float,
    progress: Callable[[str], None],
) -> list[Row]:
    connections, chance = Connections("127.0.0.1", port), random.Random(SEED)
    shuffled = chance.sample(requests, len(requests))
    closed = await saturate(connections, shuffled, CLIENTS, min(SATURATE_SECONDS, seconds))
    rows = []
    for share in SHARES:
        rate = share * one.capacity
        progress(f"{name}: {rate:.0f} requests/s, {share:.0%} of what the plan says")
        departures = poisson(rate, seconds, SEED)
        before = await _cpu_seconds(probe_port)
        outcomes = await offer(connections, chance.choices(requests, k=len(departures)), departures)
        cpu = await _cpu_seconds(probe_port) - before
        planned = one.load(rate, 1)
        assert planned is not None
        good = [outcome for outcome in outcomes if not outcome.error]
        row: Row = {"workload": name, "share": share, "offered_rate": rate, "requests": len(outcomes)}
        row |= {"errors": len(outcomes) - len(good), "planned_capacity": one.capacity, "closed_loop_rate": closed}
        row |= {
            "planned_cpu_s": planned.cpu / rate,
            "measured_cpu_s": cpu / max(1, len(good)),
        }
        row |= {"planned_p50_s": planned.p50, "planned_p99_s": planned.p99, **quantiles("measured_", good)}
        rows.append(row)
    connections.close()
    return rows


async def _cpu_seconds(probe_port: int) -> float:
    """Return the CPU time that the server has taken: unlike latency, it is little changed by what else runs."""
    connections = Connections("127.0.0.1", probe_port)
    text = (await connections.get("/metrics")).body.decode()
    connections.close()
    return float(text.split("\nprocess_cpu_seconds_total ")[1].split()[0])


# ---- beside simulated fleets


def simulated_pod(curve: Curve) -> tuple[Pod, float]:
    """Return the pod of one CPU under the first workload, and the variation of its requests' work."""
    mean, p99 = WORKLOADS["qa"]
    one = pod(Demand(qps=1, tokens=mean, tokens_p99=p99, p99_ms=1000, cores=1), curve)
    return one, one.server.variance**0.5 / one.server.each


def _service(server: Server, *, deadline: float = inf, admits: bool = True) -> Service:
    return Service(server.fixed, server.each, server.most, deadline, admits)


def steady(one: Pod, variation: float, size: Size, progress: Callable[[str], None]) -> Iterator[Row]:
    """Give plan and simulation, at each share on a small fleet, and at 70 % on fleets of all sizes."""
    cases = [(share, size.small) for share in SIMULATED_SHARES]
    cases += [(0.7, pods) for pods in (1, 10, 100, size.large) if pods <= size.large]
    for share, pods in cases:
        rate = share * one.capacity * pods
        progress(f"simulation: {pods:,} pods, {rate:,.0f} requests/s, {share:.0%}")
        planned = one.load(rate, pods)
        assert planned is not None
        seconds = max(size.steady_seconds, size.requests / rate)
        scene = Scene(_service(one.server), pods, seconds, always(rate), variation=variation)
        # A steady fleet need not be looked at: steps of a quarter of a million requests.
        fleet = Fleet(replace(scene, step=max(0.25, 2.5e5 / rate))).run()
        warm = int(seconds / 5)
        row: Row = {"share": share, "pods": pods, "offered_rate": rate, "requests": fleet.total("offered")}
        row |= {"planned_p50_s": planned.p50, "planned_p99_s": planned.p99}
        yield row | {f"simulated_p{q}_s": fleet.quantile(q / 100, warm) for q in (50, 99)}


def routing(one: Pod, variation: float, size: Size, progress: Callable[[str], None]) -> Iterator[Row]:
    """Give the p99 of three ways to choose a pod."""
    kinds: Sequence[Routing] = ("random", "turns", "two")
    pods = max(10, size.small // 10)
    for share in (0.5, 0.7, 0.9):
        row: Row = {"share": share, "pods": pods}
        for kind in kinds:
            progress(f"simulation: {share:.0%}, routing: {kind}")
            rate = share * one.capacity * pods
            step = 0.002 if kind == "two" else 0.25
            scene = Scene(_service(one.server), pods, size.steady_seconds, always(rate), kind, variation, step)
            row[f"{kind}_p99_s"] = Fleet(scene).run().quantile(0.99, 1)
        yield row


def timelines(
    one: Pod, variation: float, size: Size, progress: Callable[[str], None]
) -> Iterator[tuple[str, list[Row]]]:
    """Give fleets that are hit: a load that doubles, bursts, a fifth of the pods lost; with admission and without."""
    calm = 0.6 * one.capacity
    for name, pods, scene in _scenes(one, variation, size, calm):
        progress(f"simulation: {name}, {pods:,} pods")
        yield name, Fleet(scene).run().rows()


def _scenes(one: Pod, variation: float, size: Size, calm: float) -> Iterator[tuple[str, int, Scene]]:
    admitting = _service(one.server, deadline=DEADLINE_SECONDS)
    trusting = replace(admitting, admits=False)
    for kind, served in (("admission", admitting), ("no_admission", trusting)):
        pods, most = size.small, 3 * size.small
        rate = spike(calm * pods, 2 * calm * pods, 30 / size.hurry, 150 / size.hurry)
        scaler = Autoscaler(target=0.6, most=most, least=pods)
        base = Scene(served, pods, 180.0 / size.hurry, rate, variation=variation, autoscaler=scaler)
        yield f"doubled_{kind}", pods, base
        lost = replace(base, autoscaler=None, rate=always(0.7 / 0.6 * calm * pods), seconds=90.0 / size.hurry)
        yield f"lost_{kind}", pods, replace(lost, loss=Loss(at=30 / size.hurry, share=0.4))
    # The largest: more than a million requests a second at its height.
    large = size.large
    scaler = Autoscaler(target=0.6, most=large, least=large // 2)
    rate = bursts(calm * large / 2, 0.55 * one.capacity * large, 30, 40, SEED)
    scene = Scene(admitting, large // 2, 90.0 / size.hurry, rate, variation=variation, autoscaler=scaler)
    yield "bursts_large", large, scene
