"""The http level: the real service with its embedded models, alone with one client and under open-loop load up to twice
what it can do.
"""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from statistics import median
from time import perf_counter
from typing import Any

import uvloop

from bench.footprint import apart, resident_bytes, service
from bench.load_generator import Connections, Outcome, Request, offer, poisson, saturate
from bench.summary import quantile

# Shares of what a closed loop of CLIENTS reached just before: at 2 half of it cannot be answered.
SHARES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
# Enough to fill batches; more would only wait.
CLIENTS = 32
SATURATE_SECONDS = 3.0
# What the requests allow. Many times an answer alone, and short enough that a run reaches its steady state.
DEADLINE_MS = 1000
PROBE_SECONDS = 0.1
ALONE = 200
SEED = 5

_CONTEXT = "The old mill stands on the river Aller near Celle. It was built in 1735 and ground grain for the valley. "
# Endpoint, a short and a long input, and a word that the right answer holds: checked before anything is timed.
QUESTIONS: dict[str, tuple[str, list[Any], str]] = {
    "sentiment": (
        "/v1/text-classification",
        ["a warm, funny and deeply moving film", "a warm and funny film with a slow start " * 3],
        '"positive"',
    ),
    "ner": (
        "/v1/token-classification",
        ["Angela Merkel visited Siemens in Munich.", "Siemens sent Angela Merkel from Munich to Paris in May. " * 2],
        '"PER"',
    ),
    "qa": (
        "/v1/question-answering",
        [{"question": "When was the mill built?", "context": _CONTEXT * times} for times in (1, 10)],
        "1735",
    ),
}
KINDS = ("short", "long")

Row = dict[str, Any]


def measure(
    threads: int, seconds: float, rounds: int, progress: Callable[[str], None], *, alone_on_cpu: bool = False
) -> tuple[list[Row], list[Row]]:
    """Give the rows of http.csv, one per workload, rate and round, and of http_alone.csv, one per request.

    Rounds are interleaved, all rates in each: what the machine does meanwhile meets all of them. alone_on_cpu: the
    service has the first CPU for itself and one engine thread, the load generator has the others.

    Raises RuntimeError for a wrong answer or none.
    """
    threads = 1 if alone_on_cpu else threads
    with apart() as pin, service(None, threads) as (process, port, probe_port):
        if alone_on_cpu:
            pin(process.pid)
        workloads = {name: uvloop.run(checked(port, *question)) for name, question in QUESTIONS.items()}
        progress("one client")
        alone = [
            {"workload": name, "kind": request.kind, "threads": threads, "apart": alone_on_cpu}
            | uvloop.run(overhead(port, request))
            for name, requests in workloads.items()
            for request in requests
        ]
        workloads["all three"] = [request for requests in zip(*workloads.values(), strict=True) for request in requests]
        loaded = [
            {"workload": name, "threads": threads, "apart": alone_on_cpu}
            | row
            | {"resident_bytes": resident_bytes(process.pid)}
            for name, requests in workloads.items()
            for row in uvloop.run(_rates(port, probe_port, name, requests, seconds, rounds, progress))
        ]
    return loaded, alone


async def checked(
    port: int, path: str, inputs: Sequence[Any], word: str, kinds: Sequence[str] = KINDS
) -> list[Request]:
    """Ask each input once, check the answer, and return requests that expect that very answer again.

    The engine promises the same bits alone and in any batch, so every later answer must be equal byte for byte.
    """
    connections = Connections("127.0.0.1", port)
    requests = [
        Request(path, json.dumps({"inputs": item}).encode(), kind=kind, deadline_ms=DEADLINE_MS)
        for item, kind in zip(inputs, kinds, strict=True)
    ]
    answers = [await connections.post(replace(request, deadline_ms=None)) for request in requests]
    connections.close()
    for request, answer in zip(requests, answers, strict=True):
        if answer.status != 200 or word not in answer.body.decode():
            shown = f"status {answer.status} for {request.body[:80]!r}: {answer.body[:200]!r}"
            raise RuntimeError(f"{path}: {shown}; nothing is timed")
    return [replace(request, expected=answer.body) for request, answer in zip(requests, answers, strict=True)]


async def overhead(port: int, request: Request) -> Row:
    """Ask one request again and again: medians of its time, of the engine's part in it, and of the difference.

    Of that, too: the work on the text, which is the model's and grows with it (tokens, and answers from logits), and
    the way there and back (HTTP, JSON, routing, the change to the engine's thread).
    """
    connections = Connections("127.0.0.1", port)
    total: list[float] = []
    parts: list[dict[str, float]] = []
    for _ in range(ALONE):
        began = perf_counter()
        answer = await connections.post(replace(request, deadline_ms=None))
        total.append(perf_counter() - began)
        parts.append(stages(answer.fields["server-timing"]))
    connections.close()
    text = [part["tokenize"] + part["post"] for part in parts]
    around = [whole - part["infer"] for whole, part in zip(total, parts, strict=True)]
    return {
        "total_s": median(total),
        "engine_s": median(part["infer"] for part in parts),
        "overhead_s": median(around),
        "text_s": median(text),
        "http_s": median(whole - part for whole, part in zip(around, text, strict=True)),
    }


def stages(timing: str) -> dict[str, float]:
    """Return the seconds of each stage in a Server-Timing header."""
    parts = (part.strip().split(";dur=") for part in timing.split(","))
    return {name: float(milliseconds) / 1e3 for name, milliseconds in parts}


async def _rates(
    port: int,
    probe_port: int,
    name: str,
    requests: list[Request],
    seconds: float,
    rounds: int,
    progress: Callable[[str], None],
) -> list[Row]:
    connections = Connections("127.0.0.1", port)
    progress(f"{name}: how much it can do")
    patient = [replace(request, deadline_ms=None) for request in requests]
    capacity = await saturate(connections, patient, CLIENTS, min(SATURATE_SECONDS, seconds))
    rows = []
    for number, share in product(range(1, rounds + 1), SHARES):
        rate = share * capacity
        progress(f"{name}, round {number}: {rate:.0f} requests/s")
        probing = asyncio.create_task(probe(probe_port))
        outcomes = await offer(connections, requests, poisson(rate, seconds, SEED + number))
        probing.cancel()
        row = {"closed_loop_rate": capacity, "share": share, "round": number}
        rows.append(row | summary(outcomes, rate) | await probing)
    connections.close()
    return rows


async def probe(port: int) -> Row:
    """Ask for health and metrics until cancelled; return the median, the 95th percentile and the longest of each, s."""
    connections, paths = Connections("127.0.0.1", port), ("/readyz", "/metrics")
    times: dict[str, list[float]] = {path: [] for path in paths}
    try:
        while True:
            for path in paths:
                began = perf_counter()
                await connections.get(path)
                times[path].append(perf_counter() - began)
            await asyncio.sleep(PROBE_SECONDS)
    except asyncio.CancelledError:
        named = {path: sorted(seconds) or [float("nan")] for path, seconds in times.items()}
        shares = (("p50", 0.5), ("p95", 0.95), ("max", 1.0))
        return {f"{path[1:]}_{q}_s": quantile(one, share) for path, one in named.items() for q, share in shares}


def summary(outcomes: Sequence[Outcome], rate: float) -> Row:
    """Condense outcomes: answers a second until the last one, quantiles of latency without the errors, errors.

    Only answers within the deadline count as answered; 503 are refusals, all else that is no answer are errors.
    """
    limit = DEADLINE_MS / 1e3
    good = [outcome for outcome in outcomes if not outcome.error]
    last = max(outcome.intended + outcome.latency for outcome in outcomes)
    errors: dict[str, int] = {}
    for outcome in outcomes:
        if outcome.error and outcome.error != "status 503":
            errors[outcome.error] = errors.get(outcome.error, 0) + 1
    return {
        "offered_rate": rate,
        "answered_rate": sum(outcome.latency <= limit for outcome in good) / last,
        **quantiles("", good),
        **{name: value for kind in KINDS for name, value in quantiles(f"{kind}_", good, kind).items()},
        "requests": len(outcomes),
        "refused": sum(outcome.error == "status 503" for outcome in outcomes),
        "errors": sum(errors.values()),
        "error_kinds": "; ".join(f"{kind}: {count}" for kind, count in sorted(errors.items())),
    }


def quantiles(prefix: str, outcomes: Sequence[Outcome], kind: str | None = None) -> Row:
    """Return the quantiles of latency of all outcomes, or of one kind of request; "" where there are none."""
    latencies = sorted(outcome.latency for outcome in outcomes if kind in (None, outcome.kind))
    shares = (50, 95, 99)
    return {f"{prefix}p{share}_s": quantile(latencies, share / 100) if latencies else "" for share in shares}
