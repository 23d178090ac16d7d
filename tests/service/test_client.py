"""The Python client against the real process, and against servers that refuse, hang, break and lie."""

import asyncio
import doctest
import inspect
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from service import client as module
from service.client import (
    LOST_RETRIES,
    AsyncClient,
    Attempts,
    BusyError,
    Client,
    ClientError,
    DeadlineError,
    ProblemError,
    UnreachableError,
)
from service.schemas import (
    QuestionAnsweringParameters,
    QuestionInput,
    TextClassificationParameters,
    TokenClassificationParameters,
)
from service.settings import EMBEDDED_MODELS
from tests.service import artifacts
from tests.service.artifacts import CLS, NER, QA
from tests.service.test_server import Process, running

ROOT = Path(__file__).parents[2]
ASKED = artifacts.INPUTS[QA]


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    with running(EMBEDDED_MODELS, SPARSELANE_NOTICE_SECONDS="0") as process:
        yield process
        assert process.stop() == 0


def url(server: Process) -> str:
    return f"http://127.0.0.1:{server.port}"


def test_answers_are_those_of_the_api(server: Process) -> None:
    def raw(task: str, body: Any) -> Any:
        return server.ask("POST", f"/v1/{task}", body)[1]

    with Client(url(server) + "/") as client:
        assert client.ready()
        given = QuestionInput(**ASKED)
        reply = client.question_answering(given, parameters=QuestionAnsweringParameters(top_k=2))
        assert reply.model_dump() == raw(QA, {"inputs": ASKED, "parameters": {"top_k": 2}})
        assert client.question_answering([given, given], model="qa").results == [reply.results[0][:1]] * 2
        labels = client.text_classification(["good", "é 😀"], parameters=TextClassificationParameters(top_k=1))
        assert labels.model_dump() == raw(CLS, {"inputs": ["good", "é 😀"], "parameters": {"top_k": 1}})
        text = artifacts.INPUTS[NER]
        entities = client.token_classification(text, parameters=TokenClassificationParameters(ignore_labels=[]))
        assert entities.model_dump() == raw(NER, {"inputs": text, "parameters": {"ignore_labels": []}})

    async def conversation() -> None:
        async with AsyncClient(url(server)) as http:
            assert await http.ready()
            chosen = QuestionAnsweringParameters(top_k=2)
            assert await http.question_answering(given, parameters=chosen) == reply
            one = TextClassificationParameters(top_k=1)
            both = await asyncio.gather(*(http.text_classification(text, parameters=one) for text in ("good", "é 😀")))
            assert [answer.results[0] for answer in both] == labels.results
            assert (await http.token_classification([text])).model == "ner"

    asyncio.run(conversation())


def test_the_example_in_the_docstring_is_true(server: Process) -> None:
    names = {"Client": Client, "QuestionInput": QuestionInput, "url": url(server)}
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(module) or "", names, "client", None, None)
    result = doctest.DocTestRunner().run(example)
    assert (result.failed, result.attempted) == (0, 2)


def test_a_refusal_is_an_error_with_the_fields_of_the_problem(server: Process) -> None:
    async def refused() -> ProblemError:
        async with AsyncClient(url(server)) as http:
            with pytest.raises(ProblemError) as caught:
                await http.text_classification(["a", " "])
        return caught.value

    with Client(url(server)) as client, pytest.raises(ProblemError) as caught:
        client.text_classification(["a", " "])
    for error in (caught.value, asyncio.run(refused())):
        assert (error.status, error.title, type(error)) == (422, "Invalid request", ProblemError)
        assert [field.pointer for field in error.errors] == ["/inputs/1"]
        assert error.request_id in str(error)
        assert "no words" in str(error)


def test_an_overloaded_server_answers_in_the_end() -> None:
    texts = ["the film was good " * 12] * 12
    with running(EMBEDDED_MODELS, SPARSELANE_MAX_QUEUE_TOKENS="64", SPARSELANE_NOTICE_SECONDS="0") as process:
        with Client(url(process), timeout=300) as client, ThreadPoolExecutor(len(texts)) as threads:
            answers = list(threads.map(client.text_classification, texts))
        refused = process.metric(f'sparselane_requests_total{{model="sentiment",outcome="overloaded",task="{CLS}"}}')
        assert process.stop() == 0
    assert answers == answers[:1] * len(texts)
    assert refused > 0, "nothing was refused, so nothing was tried again"


Script = list[Callable[[BaseHTTPRequestHandler], None]]


class Scripted:
    """A server that plays a script, one step per request, and keeps the requests' headers."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.seen: list[dict[str, str]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler: BaseHTTPRequestHandler) -> None:  # noqa: N805
                handler.rfile.read(int(handler.headers["content-length"]))
                self.seen.append({name.lower(): value for name, value in handler.headers.items()})
                self.script.pop(0)(handler)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"


@contextmanager
def scripted(*script: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[Scripted]:
    server = Scripted(list(script))
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        thread.join()
        server.http.server_close()


def says(status: int, body: bytes, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def step(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {**headers, "content_length": str(len(body))}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return step


def breaks(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


ANSWER = json.dumps(
    {"model": "m", "results": [[{"label": "a", "score": 0.5}]], "usage": {"tokens": 3, "windows": 1}, "new": 1}
).encode()
BUSY = json.dumps({"title": "Overloaded", "status": 503, "detail": "later", "errors": ["not ours"]}).encode()


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, list[float]]]:
    """Ask for a label with either client; return the answer or the error, and the pauses, which take no time."""

    def asked(where: str, timeout: float = 30, **options: Any) -> tuple[Any, list[float]]:
        pauses: list[float] = []
        if request.param == "sync":
            monkeypatch.setattr(module.time, "sleep", pauses.append)
            with Client(where, timeout=timeout, **options) as client:
                try:
                    return client.text_classification("a"), pauses
                except ClientError as error:
                    return error, pauses

        async def conversation() -> Any:
            async with AsyncClient(where, timeout=timeout, **options) as http:
                try:
                    return await http.text_classification("a")
                except ClientError as error:
                    return error

        sleep = asyncio.sleep

        async def recorded(seconds: float, *rest: Any) -> Any:
            pauses.append(seconds)
            return await sleep(0, *rest)

        monkeypatch.setattr(module.asyncio, "sleep", recorded)
        return asyncio.run(conversation()), pauses

    return asked


Ask = Callable[..., tuple[Any, list[float]]]


def test_busy_servers_are_asked_again_when_they_say(ask: Ask) -> None:
    script = [says(503, BUSY, retry_after="2"), says(429, BUSY, retry_after="3"), says(503, BUSY), says(200, ANSWER)]
    with scripted(*script) as server:
        answer, pauses = ask(server.url, api_key="secret")
    assert answer.results[0][0].label == "a"
    first, second, third = pauses
    assert 2 <= first <= 3
    assert 3 <= second <= 4.5
    assert 0.4 <= third <= 0.6
    assert [seen["authorization"] for seen in server.seen] == ["Bearer secret"] * 4
    left = [int(seen["x-request-timeout-ms"]) for seen in server.seen]
    assert left == sorted(left, reverse=True)
    assert 1 <= left[-1] <= left[0] <= 30_000


@pytest.mark.parametrize("timeout", [601.0, 1e6])
def test_a_server_is_asked_for_no_more_time_than_it_gives(ask: Ask, timeout: float) -> None:
    with scripted(says(200, ANSWER)) as server:
        answer, _ = ask(server.url, timeout)
    assert answer.results[0][0].label == "a"
    assert server.seen[0]["x-request-timeout-ms"] == "600000"


def test_an_answer_that_trickles_in_does_not_outlast_the_call() -> None:
    """A byte now and then: each wait is short, all of them are a minute. Nobody is there to read them to the end."""
    left = threading.Event()

    def trickles(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("content-length", "1200")
        handler.end_headers()
        try:
            for _ in range(1200):
                handler.wfile.write(b" ")
                handler.wfile.flush()
                left.wait(0.05)
        except OSError:
            left.set()

    with scripted(trickles) as server, Client(server.url, timeout=0.5) as client:
        with pytest.raises(DeadlineError, match="no answer in time"):
            client.text_classification("a")
        assert left.wait(300), "it was read to its end"


def test_a_retry_after_the_deadline_is_no_retry(ask: Ask) -> None:
    with scripted(says(503, BUSY, retry_after="30")) as server:
        error, pauses = ask(server.url)
    assert (type(error), error.status, error.retry_after, pauses) == (BusyError, 503, 30, [])
    assert str(error) == "503 Overloaded: later"
    assert error.errors == []


def test_retry_after_may_be_a_date(ask: Ask) -> None:
    past, never = "Wed, 21 Oct 2015 07:28:00 GMT", "Thu, 31 Dec 2099 23:59:59 GMT"
    with scripted(says(503, BUSY, retry_after=past), says(503, BUSY, retry_after=never)) as server:
        error, pauses = ask(server.url)
    assert pauses == [0]
    assert error.retry_after > 1e8


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 500, 504])
def test_nothing_else_is_asked_again(ask: Ask, status: int) -> None:
    with scripted(says(status, b"<html>no</html>", retry_after="1")) as server:
        error, pauses = ask(server.url)
    assert (type(error), error.status, pauses, len(server.seen)) == (ProblemError, status, [], 1)
    assert error.detail == "<html>no</html>"


@pytest.mark.parametrize("lost", [breaks, says(502, b"<html>Bad Gateway</html>")], ids=["broken", "502"])
def test_a_server_that_dies_with_a_request_is_replaced_by_another(ask: Ask, lost: Any) -> None:
    with scripted(lost, lost, says(200, ANSWER)) as server:
        answer, pauses = ask(server.url)
    assert answer.results[0][0].label == "a"
    assert (len(pauses), len(server.seen)) == (2, 3)


@pytest.mark.parametrize(("lost", "kind"), [(breaks, UnreachableError), (says(502, b""), ProblemError)])
def test_a_request_that_kills_servers_does_not_meet_them_all(ask: Ask, lost: Any, kind: type[ClientError]) -> None:
    with scripted(*[lost] * 9) as server:
        error, pauses = ask(server.url)
    assert (type(error), error.lost, len(server.seen), len(pauses)) == (kind, True, 1 + LOST_RETRIES, LOST_RETRIES)


def test_a_server_that_hangs_is_left_in_time(ask: Ask) -> None:
    free = threading.Event()
    with scripted(lambda _: free.wait(60) and None) as server:
        error, pauses = ask(server.url, timeout=0.2)
        free.set()
    assert (type(error), pauses) == (DeadlineError, [])


def test_another_server_is_named(ask: Ask) -> None:
    with scripted(says(200, b'{"model": 1}')) as server:
        error, _ = ask(server.url)
    assert type(error) is ClientError
    assert "did not answer as a sparselane server does" in str(error)


def test_where_nobody_listens_it_is_tried_until_the_deadline(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted() as server:
        pass
    slept: list[float] = []
    original = Attempts.pause

    def pause(self: Attempts, now: float, error: ClientError) -> float:
        slept.append(original(self, now, error))
        return slept[-1]

    # The pauses are recorded and take no time, so the time that is left is counted from them.
    monkeypatch.setattr(Attempts, "left", lambda self, _: self.timeout - sum(slept))
    monkeypatch.setattr(Attempts, "pause", pause)
    error, pauses = ask(server.url, timeout=20)
    assert type(error) is UnreachableError
    assert server.url in str(error)
    assert 5 <= len(pauses) <= 12
    assert sum(pauses) < 20


def test_a_host_that_does_not_exist_is_said_at_once(ask: Ask) -> None:
    error, pauses = ask("http://nowhere.invalid:1")
    assert (type(error), pauses) == (UnreachableError, [])


def test_pauses_double_up_to_a_limit_and_end_before_the_deadline() -> None:
    attempts, error = Attempts(60, began=100), UnreachableError("x")
    pauses = [attempts.pause(100, error) for _ in range(9)]
    for place, pause in enumerate(pauses):
        base = min(0.1 * 2**place, 5)
        assert base <= pause <= 1.5 * base
    assert attempts.left(159) == 1
    assert attempts.left(200) == 0.001
    with pytest.raises(UnreachableError):
        attempts.pause(156, error)


def test_ready_is_false_where_nobody_listens() -> None:
    with scripted() as gone:
        pass

    async def ready() -> bool:
        async with AsyncClient(gone.url) as http:
            return await http.ready()

    with Client(gone.url) as client:
        assert not client.ready()
    assert not asyncio.run(ready())


def test_the_client_imports_nothing_of_the_server() -> None:
    heavy = ["engine", "fastapi", "numpy", "prometheus_client", "starlette", "tokenizers", "typer", "uvicorn"]
    code = f"import sys, service.client; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "[]\n"
