"""An open-loop load generator: requests leave at a fixed rate whatever the answers do.

Latency counts from the moment a request *should* have left. A closed loop, which waits for an answer before it asks
again, sends less just when the server is slow and so hides what its users would feel ("coordinated omission").
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

# What has not been answered this long after it should have left counts as an error.
TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class Request:
    """One POST and the answer it must get, byte for byte; expected None: any answer with status 200."""

    path: str
    body: bytes
    expected: bytes | None = None


@dataclass(frozen=True)
class Outcome:
    """One request: when it should have left (s after the start), s from then to its answer, error or empty."""

    intended: float
    latency: float
    error: str


class Connections:
    """Keeps connections alive and opens another when all are busy."""

    def __init__(self, host: str, port: int) -> None:
        """Connect nothing yet."""
        self._address = host, port
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, request: Request) -> tuple[int, bytes]:
        """Send a request and return status and body."""
        reader, writer = self._free.pop() if self._free else await asyncio.open_connection(*self._address)
        try:
            head = (
                f"POST {request.path} HTTP/1.1\r\nhost: {self._address[0]}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(request.body)}\r\n\r\n"
            )
            writer.write(head.encode() + request.body)
            answer = await _read_answer(reader)
        except BaseException:
            writer.close()
            raise
        self._free.append((reader, writer))
        return answer

    def close(self) -> None:
        """Close all that are free."""
        for _, writer in self._free:
            writer.close()
        self._free.clear()


async def _read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    fields = dict(line.lower().split(":", 1) for line in head[1:] if ":" in line)
    if "content-length" not in fields:
        raise ConnectionError("the answer has no content-length")
    return int(head[0].split()[1]), await reader.readexactly(int(fields["content-length"]))


async def offer(connections: Connections, requests: Sequence[Request], rate: float, seconds: float) -> list[Outcome]:
    """Send `rate` requests a second, in turn from `requests`, and return all outcomes in the order of departure."""
    began = perf_counter()
    tasks = []
    for number in range(max(1, round(rate * seconds))):
        intended = number / rate
        # Sleeping is late by a little; the latency counts from `intended`, so that shows and is not hidden.
        if (wait := began + intended - perf_counter()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(_one(connections, requests[number % len(requests)], began, intended)))
    return list(await asyncio.gather(*tasks))


async def _one(connections: Connections, request: Request, began: float, intended: float) -> Outcome:
    error = ""
    try:
        left = began + intended + TIMEOUT_SECONDS - perf_counter()
        status, body = await asyncio.wait_for(connections.post(request), max(0.0, left))
        if status != 200:
            error = f"status {status}"
        elif request.expected is not None and body != request.expected:
            error = "another answer"
    except TimeoutError:
        error = "timeout"
    except (OSError, asyncio.IncompleteReadError) as broken:
        error = type(broken).__name__
    return Outcome(intended, perf_counter() - began - intended, error)


async def saturate(connections: Connections, requests: Sequence[Request], clients: int, seconds: float) -> float:
    """Return answers per second of a closed loop of `clients`: about what the server can do, to choose rates by."""
    end = perf_counter() + seconds
    answered = 0

    async def client(number: int) -> None:
        nonlocal answered
        while perf_counter() < end:
            await connections.post(requests[number % len(requests)])
            answered += 1
            number += 1

    began = perf_counter()
    await asyncio.gather(*(client(number) for number in range(clients)))
    return answered / (perf_counter() - began)
