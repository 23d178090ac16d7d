"""An open-loop load generator: requests leave when they should, whatever the answers do.

Latency counts from the moment a request *should* have left. A closed loop, which waits for an answer before it asks
again, sends less just when the server is slow and so hides what its users would feel ("coordinated omission").
"""

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

# What has not been answered this long after it should have left counts as an error.
TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class Request:
    """One POST and the answer it must get, byte for byte; expected None: any answer with status 200.

    `kind` is for the tables; `deadline_ms` goes with it as X-Request-Timeout-Ms.
    """

    path: str
    body: bytes
    expected: bytes | None = None
    kind: str = ""
    deadline_ms: int | None = None

    def head(self, host: str) -> bytes:
        """Return the request line and headers."""
        deadline = f"x-request-timeout-ms: {self.deadline_ms}\r\n" if self.deadline_ms else ""
        return (
            f"POST {self.path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n{deadline}"
            f"content-length: {len(self.body)}\r\n\r\n"
        ).encode()


@dataclass(frozen=True)
class Answer:
    """Status, headers in lower case, body."""

    status: int
    fields: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Outcome:
    """One request: when it should have left (s after the start), s from then to its answer, error or empty."""

    intended: float
    latency: float
    error: str
    kind: str = ""


class Connections:
    """Keeps connections alive and opens another when all are busy."""

    def __init__(self, host: str, port: int) -> None:
        """Connect nothing yet."""
        self._address = host, port
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, request: Request) -> Answer:
        """Send a request and return its answer."""
        return await self._send(request.head(self._address[0]) + request.body)

    async def get(self, path: str) -> Answer:
        """Send a GET and return its answer."""
        return await self._send(f"GET {path} HTTP/1.1\r\nhost: {self._address[0]}\r\n\r\n".encode())

    async def _send(self, message: bytes) -> Answer:
        reader, writer = self._kept() or await asyncio.open_connection(*self._address)
        try:
            writer.write(message)
            answer, stays = await _read_answer(reader)
        except BaseException:
            writer.close()
            raise
        if stays:
            self._free.append((reader, writer))
        else:
            writer.close()
        return answer

    def _kept(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """Return the connection used last that the server has not closed since, as it does with idle ones."""
        while self._free:
            reader, writer = self._free.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return None

    def close(self) -> None:
        """Close all that are free."""
        for _, writer in self._free:
            writer.close()
        self._free.clear()


async def _read_answer(reader: asyncio.StreamReader) -> tuple[Answer, bool]:
    """Read an answer, and whether the connection stays open after it."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    fields = dict(line.lower().split(":", 1) for line in head[1:] if ":" in line)
    if "content-length" not in fields:
        raise ConnectionError("the answer has no content-length")
    version, status = head[0].split()[:2]
    body = await reader.readexactly(int(fields["content-length"]))
    return Answer(int(status), fields, body), version == "HTTP/1.1" and "close" not in fields.get("connection", "")


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Return times of departure, s: independent of each other, `rate` a second on average, as of many callers."""
    chance = random.Random(seed)
    times = [0.0]
    while times[-1] < seconds:
        times.append(times[-1] + chance.expovariate(rate))
    return times[:-1] or times


async def offer(connections: Connections, requests: Sequence[Request], departures: Sequence[float]) -> list[Outcome]:
    """Send a request at each of `departures`, in turn from `requests`; return all outcomes in that order."""
    began = perf_counter()
    tasks = []
    for number, intended in enumerate(departures):
        # Sleeping is late by a little; the latency counts from `intended`, so that shows and is not hidden.
        if (wait := began + intended - perf_counter()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(_one(connections, requests[number % len(requests)], began, intended)))
    return list(await asyncio.gather(*tasks))


async def _one(connections: Connections, request: Request, began: float, intended: float) -> Outcome:
    error = ""
    try:
        left = began + intended + TIMEOUT_SECONDS - perf_counter()
        answer = await asyncio.wait_for(connections.post(request), max(0.0, left))
        if answer.status != 200:
            error = f"status {answer.status}"
        elif request.expected is not None and answer.body != request.expected:
            error = "another answer"
    except TimeoutError:
        error = "timeout"
    except (OSError, asyncio.IncompleteReadError) as broken:
        error = type(broken).__name__
    return Outcome(intended, perf_counter() - began - intended, error, request.kind)


async def saturate(connections: Connections, requests: Sequence[Request], clients: int, seconds: float) -> float:
    """Return answers per second of a closed loop of `clients`: about what the server can do, to choose rates by."""
    end = perf_counter() + seconds
    answered = 0

    async def client(number: int) -> None:
        nonlocal answered
        while perf_counter() < end:
            answer = await connections.post(requests[number % len(requests)])
            answered += answer.status == 200  # not around `await`, which would keep an old count
            number += 1

    began = perf_counter()
    await asyncio.gather(*(client(number) for number in range(clients)))
    return answered / (perf_counter() - began)
