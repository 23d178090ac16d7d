"""The open loop: requests leave on time, and waiting counts from when they should have left."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest

from bench import load_generator
from bench.http_level import stages, summary
from bench.load_generator import Connections, Outcome, Request, offer, poisson, saturate

Answer = Callable[[int], Awaitable[tuple[int, bytes]]]


def run_against(answer: Answer, rate: float, seconds: float, expected: bytes | None = None) -> list[Outcome]:
    """Offer load to a tiny server whose `answer` is told the number of the request."""

    async def run() -> list[Outcome]:
        async with await tiny_server(answer) as server:
            connections = Connections("127.0.0.1", server.sockets[0].getsockname()[1])
            departures = [number / rate for number in range(round(rate * seconds))]
            outcomes = await offer(connections, [Request("/", b"{}", expected)], departures)
            connections.close()
        return outcomes

    return asyncio.run(run())


async def tiny_server(answer: Answer) -> asyncio.Server:
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split()[0]))
                count += 1
                status, body = await answer(count - 1)
                writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", 0)


async def at_once(_number: int) -> tuple[int, bytes]:
    return 200, b"yes"


def test_every_request_is_sent_and_counted() -> None:
    outcomes = run_against(at_once, rate=100, seconds=0.2, expected=b"yes")
    assert [round(100 * outcome.intended) for outcome in outcomes] == list(range(20))
    assert all(outcome.error == "" for outcome in outcomes)


def test_a_slow_answer_does_not_hold_back_the_next_requests() -> None:
    """A closed loop would deadlock here: the first answer waits until the last request has come."""
    last_came = asyncio.Event()

    async def answer(number: int) -> tuple[int, bytes]:
        if number == 9:
            last_came.set()
        await last_came.wait()
        return 200, b""

    outcomes = run_against(answer, rate=50, seconds=0.2)
    assert len(outcomes) == 10
    assert all(outcome.error == "" for outcome in outcomes)
    # The last request should have left at 9/50 s, so the first waited at least that long.
    assert outcomes[0].latency >= 9 / 50


def test_a_stalled_generator_shows_in_the_latency() -> None:
    """The intended times pass while the event loop is blocked; requests sent late count from then."""
    import time

    async def answer(number: int) -> tuple[int, bytes]:
        if number == 0:
            time.sleep(0.2)  # blocks server and generator alike
        return 200, b""

    outcomes = run_against(answer, rate=100, seconds=0.1)
    assert outcomes[3].latency >= 0.1


def test_errors_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_generator, "TIMEOUT_SECONDS", 5.0)  # enough for the others on any machine

    async def answer(number: int) -> tuple[int, bytes]:
        if number == 0:
            return 503, b""
        if number == 1:
            await asyncio.sleep(6)
        return 200, b"other" if number == 2 else b"yes"

    outcomes = run_against(answer, rate=20, seconds=0.2, expected=b"yes")
    assert [outcome.error for outcome in outcomes] == ["status 503", "timeout", "another answer", ""]


def test_a_refused_connection_is_an_error_not_a_crash() -> None:
    outcomes = asyncio.run(offer(Connections("127.0.0.1", 1), [Request("/", b"")], [0.0]))
    assert [outcome.error for outcome in outcomes] == ["ConnectionRefusedError"]


def test_the_closed_loop_counts_answers() -> None:
    async def run() -> float:
        async with await tiny_server(at_once) as server:
            connections = Connections("127.0.0.1", server.sockets[0].getsockname()[1])
            rate = await saturate(connections, [Request("/", b"{}")], clients=2, seconds=0.1)
            connections.close()
        return rate

    assert asyncio.run(run()) > 0


def test_the_summary_leaves_errors_out_of_the_latency() -> None:
    outcomes = [Outcome(0.0, 0.1, ""), Outcome(1.0, 9.0, "timeout"), Outcome(2.0, 0.3, "")]
    row = summary(outcomes, rate=1.0)
    assert row["p50_s"] == pytest.approx(0.2)
    assert (row["requests"], row["refused"], row["errors"], row["error_kinds"]) == (3, 0, 1, "timeout: 1")
    assert row["answered_rate"] == pytest.approx(2 / 10.0)
    assert summary([Outcome(0.0, 1.0, "timeout")], 1.0)["p99_s"] == ""


def test_the_summary_tells_refusals_late_answers_and_kinds_apart() -> None:
    outcomes = [Outcome(0.0, 0.1, "", "short"), Outcome(0.0, 2.0, "", "long"), Outcome(0.0, 0.0, "status 503", "long")]
    row = summary(outcomes, rate=1.0)
    assert row["answered_rate"] == pytest.approx(1 / 2.0), "the late one does not count"
    assert (row["refused"], row["errors"]) == (1, 0)
    assert (row["short_p99_s"], row["long_p99_s"]) == (0.1, 2.0)


def test_departures_are_independent_and_as_many_as_asked_for() -> None:
    times = poisson(1000, 10, seed=1)
    assert times == sorted(times) and times[-1] < 10
    assert len(times) == pytest.approx(10_000, rel=0.05)
    gaps = [after - before for before, after in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(mean**2, rel=0.1)
    assert poisson(0.001, 0.1, seed=1) == [0.0]


def test_the_engines_part_is_read_from_server_timing() -> None:
    assert stages("tokenize;dur=0.40, queue;dur=1.00, infer;dur=7.90") == pytest.approx(
        {"tokenize": 0.0004, "queue": 0.001, "infer": 0.0079}
    )
