"""The http level: the real service with its embedded models under open-loop load, at several rates."""

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from bench.footprint import resident_bytes, service
from bench.load_generator import Connections, Outcome, Request, offer, saturate
from bench.summary import quantile

# Shares of what a closed loop of CLIENTS reached just before: three that must hold, and one that cannot.
SHARES = (0.25, 0.5, 0.75, 1.1)
CLIENTS = 8
SATURATE_SECONDS = 3.0

_CONTEXT = "The old mill stands on the river Aller near Celle. It was built in 1735 and ground rye until 1968. "
# Endpoint, inputs, and a word that the right answer holds: checked before anything is timed.
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
        [{"question": "When was the mill built?", "context": _CONTEXT * times} for times in (1, 3)],
        "1735",
    ),
}

Row = dict[str, Any]


def measure(threads: int, seconds: float, progress: Callable[[str], None]) -> Iterator[Row]:
    """Give the rows of http.csv: one per workload and rate. Raises RuntimeError for a wrong answer or none."""
    with service(None, threads) as (process, port):
        workloads = {name: asyncio.run(checked(port, *question)) for name, question in QUESTIONS.items()}
        workloads["all three"] = [request for requests in zip(*workloads.values(), strict=True) for request in requests]
        for name, requests in workloads.items():
            for row in asyncio.run(_rates(port, name, requests, seconds, progress)):
                yield {"workload": name, "threads": threads} | row | {"resident_bytes": resident_bytes(process.pid)}


async def checked(port: int, path: str, inputs: Sequence[Any], word: str) -> list[Request]:
    """Ask each input once, check the answer, and return requests that expect that very answer again.

    The engine promises the same bits alone and in any batch, so every later answer must be equal byte for byte.
    """
    connections = Connections("127.0.0.1", port)
    requests = [Request(path, json.dumps({"inputs": item}).encode()) for item in inputs]
    answers = [await connections.post(request) for request in requests]
    connections.close()
    for request, (status, body) in zip(requests, answers, strict=True):
        if status != 200 or word not in body.decode():
            raise RuntimeError(f"{path}: status {status} for {request.body[:80]!r}: {body[:200]!r}; nothing is timed")
    return [replace(request, expected=body) for request, (_, body) in zip(requests, answers, strict=True)]


async def _rates(
    port: int, name: str, requests: list[Request], seconds: float, progress: Callable[[str], None]
) -> list[Row]:
    connections = Connections("127.0.0.1", port)
    progress(f"{name}: how much it can do")
    capacity = await saturate(connections, requests, CLIENTS, min(SATURATE_SECONDS, seconds))
    rows = []
    for share in SHARES:
        rate = share * capacity
        progress(f"{name}: {rate:.0f} requests/s")
        rows.append(
            {"closed_loop_rate": capacity, "share": share}
            | summary(await offer(connections, requests, rate, seconds), rate)
        )
    connections.close()
    return rows


def summary(outcomes: Sequence[Outcome], rate: float) -> Row:
    """Condense outcomes: answers a second until the last one, quantiles of latency without the errors, errors."""
    good = sorted(outcome.latency for outcome in outcomes if not outcome.error)
    last = max(outcome.intended + outcome.latency for outcome in outcomes)
    errors: dict[str, int] = {}
    for outcome in outcomes:
        if outcome.error:
            errors[outcome.error] = errors.get(outcome.error, 0) + 1
    quantiles = {f"p{share}_s": quantile(good, share / 100) if good else "" for share in (50, 90, 99)}
    return {
        "offered_rate": rate,
        "answered_rate": len(good) / last,
        **quantiles,
        "requests": len(outcomes),
        "errors": sum(errors.values()),
        "error_kinds": "; ".join(f"{kind}: {count}" for kind, count in sorted(errors.items())),
    }
