"""Hostile and odd clients on a real socket: slow ones, large heads, no HTTP, pipelines, half-closed connections."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from service.connection import MAX_HEAD_BYTES
from tests.service import artifacts
from tests.service.artifacts import CLS
from tests.service.test_server import Process, running
from tests.waiting import until

SECONDS = 0.6
BODY = b'{"inputs": "a good film"}'
HEAD = f"POST /v1/{CLS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n".encode()
ASK = HEAD + b"content-length: %d\r\n\r\n%s" % (len(BODY), BODY)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("models")
    artifacts.write(folder, CLS)
    with running(folder, SPARSELANE_READ_SECONDS=str(SECONDS), SPARSELANE_NOTICE_SECONDS="0") as process:
        yield process
        assert not [line for line in process.lines if "Traceback" in line]


@pytest.fixture
def client(server: Process) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        yield connection
    assert server.ask("GET", "/healthz")[0] == 200


def next_answer(connection: socket.socket) -> tuple[int, bytes] | None:
    """Read one answer and no byte of the one after it: status and body; None where the server has closed."""
    head = b""
    with suppress(ConnectionResetError):
        while not head.endswith(b"\r\n\r\n") and (byte := connection.recv(1)):
            head += byte
    if not head:
        return None
    lines = [line.lower() for line in head.split(b"\r\n")[1:]]
    (length,) = (int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:"))
    body = b""
    while len(body) < length:
        piece = connection.recv(length - len(body))
        assert piece, f"the server closed after {len(body)} of {length} bytes"
        body += piece
    return int(head.split()[1]), body


def answers(connection: socket.socket) -> list[tuple[int, bytes]]:
    """Read until the server closes: status and body of every answer."""
    return list(iter(lambda: next_answer(connection), None))


def answer_status(connection: socket.socket) -> int:
    answer = next_answer(connection)
    assert answer is not None, "the server closed without an answer"
    return answer[0]


def dribble(connection: socket.socket, data: bytes) -> None:
    """Send a byte at a time, slower than the server waits, until it hangs up."""
    end = time.monotonic() + 20 * SECONDS
    try:
        for place in range(len(data)):
            assert time.monotonic() < end, "the server waits for ever"
            connection.sendall(data[place : place + 1])
            time.sleep(SECONDS / 10)
    except OSError:
        pass


def refused(connection: socket.socket, status: int) -> str:
    ((given, body),) = answers(connection)
    problem = json.loads(body)
    assert (given, problem["status"]) == (status, status)
    assert problem["request_id"]
    return str(problem["error"])


def test_a_head_that_comes_too_slowly_is_a_408(client: socket.socket) -> None:
    dribble(client, HEAD)
    assert "more than 0.6 s" in refused(client, 408)


def test_a_body_that_comes_too_slowly_is_a_408(client: socket.socket, server: Process) -> None:
    client.sendall(HEAD + b"content-length: 1000\r\n\r\n")
    dribble(client, b" " * 1000)
    assert "the body took more than 0.6 s" in refused(client, 408)
    counted = 'sparselane_requests_total{model="none",outcome="slow_client",task="text-classification"}'
    assert server.metric(counted) == 1


def test_a_connection_that_sends_nothing_is_closed(client: socket.socket) -> None:
    assert answers(client) == []


def test_the_second_request_of_a_connection_may_not_be_slow_either(client: socket.socket) -> None:
    client.sendall(ASK)
    assert answer_status(client) == 200
    dribble(client, HEAD)
    assert "head of the request" in refused(client, 408)


def test_what_is_left_of_a_refused_body_is_not_read_for_ever(client: socket.socket) -> None:
    client.sendall(HEAD + b"content-length: 999999999\r\n\r\n")
    assert answer_status(client) == 413
    dribble(client, b" " * 1000)
    assert answers(client) == []


def test_a_client_may_think_between_its_requests(client: socket.socket) -> None:
    for _ in range(2):
        client.sendall(ASK)
        assert answer_status(client) == 200
        time.sleep(2 * SECONDS)
    client.sendall(ASK.replace(b"host: x", b"host: x\r\nconnection: close"))
    assert [status for status, _ in answers(client)] == [200]


@pytest.mark.parametrize(
    "head",
    [
        b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-long: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n",
        b"GET /healthz?" + b"a" * MAX_HEAD_BYTES + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * (MAX_HEAD_BYTES // 6) + b"\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-endless: " + b"a" * 3_000_000,
        b"GET /healthz HTTP/1.1\r\nhost: x\r\n" + b"x-endless: b\r\n" * 200_000,
    ],
    ids=["value", "path", "many", "value without end", "many without end"],
)
def test_a_large_head_is_a_431(client: socket.socket, head: bytes) -> None:
    with suppress(OSError):  # it may hang up while we send; the answer may be lost with that
        client.sendall(head)
    statuses = [status for status, _ in answers(client)]
    assert statuses == [431] or (not statuses and len(head) > 1_000_000)


def test_a_head_below_the_limit_is_read(client: socket.socket) -> None:
    client.sendall(
        ASK.replace(b"host: x", b"host: x\r\nconnection: close\r\nx-long: " + b"a" * (MAX_HEAD_BYTES - 1000))
    )
    assert [status for status, _ in answers(client)] == [200]


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"HELLO\r\n\r\n",
        b"\x00" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        bytes(range(128, 256)) * 4,
    ],
)
def test_what_is_no_http_is_a_400(client: socket.socket, data: bytes) -> None:
    client.sendall(data)
    assert "no HTTP" in refused(client, 400)


def test_a_body_longer_than_it_said_is_a_second_request_that_is_no_http(client: socket.socket) -> None:
    client.sendall(ASK + b"}}}}\r\n\r\n")
    assert [status for status, _ in answers(client)][-1] == 400


H2C = HEAD + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"


@pytest.mark.parametrize("pieces", [1, 2])
def test_an_upgrade_that_is_offered_is_not_taken_and_the_body_is_read(client: socket.socket, pieces: int) -> None:
    """As Java's HttpClient offers HTTP/2."""
    head, body = ASK.split(b"\r\n\r\n", 1)
    offered = H2C + head.split(b"\r\n")[-1] + b"\r\n\r\n"
    assert b"content-length" in offered.lower()
    for _ in range(2):
        client.sendall(offered + (body if pieces == 1 else b""))
        if pieces == 2:
            time.sleep(SECONDS / 4)
            client.sendall(body)
        assert answer_status(client) == 200


def test_fields_behind_a_chunked_body_are_no_headers_and_have_an_end(client: socket.socket) -> None:
    _, body = ASK.split(b"\r\n\r\n", 1)
    chunked = HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"%x\r\n%s\r\n0\r\n" % (len(body), body)
    client.sendall(chunked + b"x-request-timeout-ms: no number\r\n\r\n")
    assert answer_status(client) == 200, "as a header it would be a 400"
    client.sendall(chunked)
    with suppress(OSError):
        for _ in range(2 * MAX_HEAD_BYTES // 1000):
            client.sendall(b"x-more: " + b"a" * 1000 + b"\r\n")
            time.sleep(SECONDS / 1000)
    assert answer_status(client) == 431


def test_pipelined_requests_are_answered_in_order(client: socket.socket) -> None:
    texts = ["a good film", "a bad film", "the film was good and bad", "x"] * 5
    requests = []
    for text in texts:
        body = json.dumps({"inputs": text}).encode()
        requests.append(HEAD + b"content-length: %d\r\n\r\n%s" % (len(body), body))
    requests.append(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    client.sendall(b"".join(requests))
    found = answers(client)
    assert [status for status, _ in found] == [200] * 21
    tokens = [json.loads(body)["usage"]["tokens"] for _, body in found[:-1]]
    assert tokens == tokens[:4] * 5
    assert len(set(tokens[:4])) == 3


def test_a_body_in_many_pieces_is_read(client: socket.socket) -> None:
    client.sendall(HEAD + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n")
    for place in range(len(BODY)):
        client.sendall(b"1\r\n" + BODY[place : place + 1] + b"\r\n")
    client.sendall(b"0\r\n\r\n")
    assert [status for status, _ in answers(client)] == [200]


def test_a_half_closed_connection_is_a_client_that_left(client: socket.socket, server: Process) -> None:
    """FIN is all that a server sees of both; work for the many that really left would be thrown away."""
    counted = 'sparselane_requests_total{model="none",outcome="cancelled",task="text-classification"}'
    before = server.metric(counted)
    client.sendall(HEAD + b"content-length: 1000\r\n\r\n" + BODY)
    client.shutdown(socket.SHUT_WR)
    assert answers(client) == []
    until(lambda: server.metric(counted) > before)


def test_two_hundred_connections_that_send_a_part_leave_nothing_behind(server: Process) -> None:
    descriptors = Path(f"/proc/{server.process.pid}/fd")
    before = len(list(descriptors.iterdir()))
    held = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(200)]
    for number, connection in enumerate(held):
        connection.sendall((HEAD + b"content-length: 50\r\n\r\n" + BODY)[: number * 3])
    assert server.ask("POST", f"/v1/{CLS}", {"inputs": "a"})[0] == 200
    for connection in held:
        answers(connection)
        connection.close()
    assert len(list(descriptors.iterdir())) <= before + 2


def test_a_burst_of_new_connections_is_answered_whole(server: Process) -> None:
    clients = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(200)]
    for connection in clients:
        connection.sendall(ASK)
    assert [answer_status(connection) for connection in clients] == [200] * len(clients)
    for connection in clients:
        connection.close()


def test_requests_in_one_piece_are_answered_in_their_order(client: socket.socket) -> None:
    """More than are let in at once, over one connection."""
    client.sendall(ASK * 30 + ASK.replace(b"host: x", b"host: x\r\nconnection: close"))
    assert [status for status, _ in answers(client)] == [200] * 31
