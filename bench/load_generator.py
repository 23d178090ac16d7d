"""An open-loop load generator: requests leave when they should, whatever the answers do.

Latency counts from the moment a request *should* have left. A closed loop, which waits for an answer before it asks
again, sends less just when the server is slow and so hides what its users would feel ("coordinated omission").
"""

import asyncio
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from time import perf_counter

# What has not been answered this long after it should have left counts as an error.
TIMEOUT_SECONDS = 10.0

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


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

    @cached_property
    def message(self) -> bytes:
        """Return what goes over the wire."""
        deadline = f"x-request-timeout-ms: {self.deadline_ms}\r\n" if self.deadline_ms else ""
        head = (
            f"POST {self.path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{deadline}"
            f"content-length: {len(self.body)}\r\n\r\n"
        )
        return head.encode() + self.body


class Answer:
    """Status, headers, body; taken apart only where somebody asks."""

    def __init__(self, received: bytes) -> None:
        """Take a whole answer as it came."""
        self.head, _, self.body = received.partition(b"\r\n\r\n")
        self.status = int(self.head[9:12])

    @property
    def fields(self) -> dict[str, str]:
        """Return the headers, in lower case."""
        lines = self.head.decode("latin-1").lower().split("\r\n")[1:]
        return dict(line.split(":", 1) for line in lines)


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
        self._free: list[_Connection] = []

    async def post(self, request: Request) -> Answer:
        """Send a request and return its answer."""
        return await self._send(request.message)

    async def get(self, path: str) -> Answer:
        """Send a GET and return its answer."""
        return await self._send(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())

    async def _send(self, message: bytes) -> Answer:
        connection = self._kept() or await self._opened()
        try:
            answer = await connection.ask(message)
        except BaseException:
            connection.close()
            raise
        if connection.stays:
            self._free.append(connection)
        return answer

    async def _opened(self) -> "_Connection":
        _, connection = await asyncio.get_running_loop().create_connection(_Connection, *self._address)
        return connection

    def _kept(self) -> "_Connection | None":
        """Return the connection used last that the server has not closed since, as it does with idle ones."""
        while self._free:
            connection = self._free.pop()
            if connection.stays:
                return connection
        return None

    def close(self) -> None:
        """Close all that are free."""
        for connection in self._free:
            connection.close()
        self._free.clear()


class _Connection(asyncio.Protocol):
    """One request at a time. Streams and header objects would cost as much CPU as a small server's whole answer."""

    def __init__(self) -> None:
        self.stays = True
        self._received = b""
        self._end = 0
        self._answered: asyncio.Future[Answer] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # a stream's always
        self._transport = transport

    def ask(self, message: bytes) -> "asyncio.Future[Answer]":
        self._received, self._end = b"", 0
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(message)
        return self._answered

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._end and (head := self._received.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._received, 0, head + 2)
            if length is None:
                self._lost(ConnectionError("the answer has no content-length"))
                return
            self._end = head + 4 + int(length[1])
        if self._end and len(self._received) >= self._end and self._answered and not self._answered.done():
            answer = Answer(self._received[: self._end])
            if _CLOSES.search(answer.head) or not answer.head.startswith(b"HTTP/1.1"):
                self.close()
            self._answered.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(exc or ConnectionError("the server closed before its answer"))

    def _lost(self, error: Exception) -> None:
        self.close()
        if self._answered and not self._answered.done():
            self._answered.set_exception(error)

    def close(self) -> None:
        self.stays = False
        self._transport.close()


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
        async with asyncio.timeout(began + intended + TIMEOUT_SECONDS - perf_counter()):
            answer = await connections.post(request)
        if answer.status != 200:
            error = f"status {answer.status}"
        elif request.expected is not None and answer.body != request.expected:
            error = "another answer"
    except TimeoutError:
        error = "timeout"
    except OSError as broken:
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
