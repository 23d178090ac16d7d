"""The soak level: mixed traffic at a steady part of capacity, for long; does the service's memory stay flat?"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final

from bench.footprint import resident_bytes, service
from bench.http_level import CLIENTS, QUESTIONS, SATURATE_SECONDS, SEED, checked, summary
from bench.load_generator import Connections, Outcome, Request, offer, poisson, saturate

SHARE: Final = 0.6
SAMPLE_SECONDS: Final = 1.0
# Answers are summed up over slices this long: the plot shows whether latency creeps.
SLICE_SECONDS: Final = 10.0

_LONG = "The old mill stands on the river Aller near Celle. It was built in 1735 and ground grain for the valley. " * 40
# What real traffic has too: a text of many windows, and requests that are refused.
LONG: Final = ("/v1/question-answering", [{"question": "When was the mill built?", "context": _LONG}], "1735")
REFUSED: Final = (Request("/v1/question-answering", b'{"inputs": 7}'), Request("/v1/nothing", b"{"))

HALF: Final = (
    b"POST /v1/question-answering HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{"
)

Row = dict[str, Any]


def measure(threads: int, minutes: float, progress: Callable[[str], None]) -> tuple[list[Row], list[Row]]:
    """Give the rows of soak_memory.csv, one per sample, and of soak_load.csv, one per slice.

    Raises RuntimeError for a wrong answer before the start.
    """
    with service(None, threads) as (process, port, _):
        return asyncio.run(_soak(process.pid, port, 60 * minutes, progress))


async def _soak(pid: int, port: int, seconds: float, progress: Callable[[str], None]) -> tuple[list[Row], list[Row]]:
    workloads = [await checked(port, *question) for question in QUESTIONS.values()]
    workloads.append(await checked(port, *LONG, kinds=("long",)))
    # The long text once in a round of the short ones.
    mixed = [*(request for turn in zip(*workloads[:-1], strict=True) for request in turn), *workloads[-1]]
    requests = [replace(request, deadline_ms=None) for request in mixed]
    connections = Connections("127.0.0.1", port)
    capacity = await saturate(connections, requests, CLIENTS, SATURATE_SECONDS)
    rate = SHARE * capacity
    progress(f"soak: {rate:.0f} requests/s for {seconds / 60:g} min, {100 * SHARE:g} % of what a closed loop reached")
    samples: list[Row] = []
    watching = asyncio.create_task(_watch(pid, samples, progress))
    refusing = asyncio.create_task(_refuse(port))
    outcomes = await offer(connections, requests, poisson(rate, seconds, SEED))
    for task in (watching, refusing):
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    connections.close()
    return samples, list(slices(outcomes, rate))


async def _watch(pid: int, samples: list[Row], progress: Callable[[str], None]) -> None:
    began = perf_counter()
    while True:
        files = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        samples.append({"second": round(perf_counter() - began, 1), "resident_bytes": resident_bytes(pid)})
        samples[-1] |= {"open_files": files, "threads": sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())}
        if len(samples) % 60 == 0:
            progress(f"soak: {len(samples) / 60:.0f} min, {samples[-1]['resident_bytes'] / 1e6:.1f} MB")
        await asyncio.sleep(SAMPLE_SECONDS)


async def _refuse(port: int) -> None:
    """Send what is refused, and leave before an answer, each once a second, on connections of their own."""
    while True:
        for request in REFUSED:
            with contextlib.suppress(OSError):
                connections = Connections("127.0.0.1", port)
                await connections.post(request)
                connections.close()
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HALF)
        writer.close()
        await asyncio.sleep(1)


def slices(outcomes: Sequence[Outcome], rate: float) -> Iterator[Row]:
    """Sum up outcomes by the slice in which they should have left."""
    last = max(outcome.intended for outcome in outcomes)
    for number in range(int(last // SLICE_SECONDS) + 1):
        begin = number * SLICE_SECONDS
        chosen = [o for o in outcomes if begin <= o.intended < begin + SLICE_SECONDS]
        if chosen:
            moved = [Outcome(o.intended - begin, o.latency, o.error) for o in chosen]
            yield {"second": begin, **summary(moved, rate)}


def growth(samples: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Return the median resident bytes of the second quarter and of the last: the first warms up."""
    sizes = [float(sample["resident_bytes"]) for sample in samples]
    quarter = max(1, len(sizes) // 4)
    return median(sizes[quarter : 2 * quarter] or sizes), median(sizes[-quarter:])
