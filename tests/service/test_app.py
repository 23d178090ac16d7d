"""The HTTP face over a formula: answers, every bad input, probes, metrics, overload, disconnects."""

import asyncio
import gzip
import json
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service import pipeline
from service.app import create_app
from service.errors import HTTP
from service.logs import JsonFormatter
from service.metrics import STAGES, TOTAL
from service.middleware import BODIES
from service.models import Model, Models
from service.pipeline import TASKS
from tests.service import fake
from tests.service.fake import Formula

QA, CLS, NER = "question-answering", "text-classification", "token-classification"
ASKED = {"question": "who was in london", "context": "john was in paris. mary was in london."}


@pytest.fixture
def models(tmp_path: Path) -> dict[str, tuple[Model, Formula]]:
    return {task: fake.model(tmp_path, task) for task in (QA, CLS, NER)}


def post(models: dict[str, tuple[Model, Formula]], task: str, body: Any, **overrides: Any) -> httpx.Response:
    async def conversation(http: httpx.AsyncClient) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await http.post(f"/v1/{task}", content=content, headers={"content-type": "application/json"})

    response = fake.talk([model for model, _ in models.values()], conversation, **overrides)
    assert isinstance(response, httpx.Response)
    return response


def test_one_input_gives_one_entry_and_a_list_one_per_input(models: dict[str, tuple[Model, Formula]]) -> None:
    one = post(models, QA, {"inputs": ASKED}).json()
    assert one["model"] == "question"
    ((answer,),) = one["results"]
    assert answer["answer"] == ASKED["context"][answer["start"] : answer["end"]]
    assert one["usage"] == {"tokens": 17, "windows": 1}
    many = post(models, QA, {"inputs": [ASKED, ASKED], "model": "question", "parameters": {"top_k": 2}}).json()
    assert [len(entries) for entries in many["results"]] == [2, 2]
    assert many["results"][0][0] == answer
    assert many["usage"] == {"tokens": 34, "windows": 2}
    assert post(models, NER, {"inputs": []}).json()["results"] == []


def test_labels_and_entities(models: dict[str, tuple[Model, Formula]]) -> None:
    body = post(models, CLS, {"inputs": ["good film", "bad film"]}).json()
    assert [{entry["label"] for entry in entries} for entries in body["results"]] == [{"negative", "positive"}] * 2
    text = "john 😀 was in the london"
    (entries,) = post(models, NER, {"inputs": text, "parameters": {"ignore_labels": []}}).json()["results"]
    assert [entry["word"] for entry in entries] == [text[entry["start"] : entry["end"]] for entry in entries] != []


# Body, status, pointer, something of the message, value, limit.
BAD: list[tuple[str, Any, int, str | None, str, str | None, str | None]] = [
    (CLS, b'{"inputs": ', 400, None, "no JSON: Expecting value at character 11", None, None),
    (CLS, b"", 400, None, "empty", None, None),
    (CLS, b"\xff\xfe", 400, None, "", None, None),
    (CLS, b"[" * 100_000, 400, None, "", None, None),
    (CLS, [1], 422, "", "JSON object", "[1]", None),
    (CLS, {"model": "text"}, 422, "/inputs", "required", None, None),
    (CLS, {"inputs": "a", "parameter": {}}, 422, "/parameter", "did you mean 'parameters'", None, None),
    (CLS, {"inputs": "a", "parameters": {"topk": 1}}, 422, "/parameters/topk", "did you mean 'top_k'", None, None),
    (CLS, {"inputs": "a", "parameters": {"top_k": 0}}, 422, "/parameters/top_k", "greater than", "0", "1"),
    (CLS, {"inputs": "a", "parameters": {"top_k": "1"}}, 422, "/parameters/top_k", "integer", "1", None),
    (
        CLS,
        {"inputs": "a", "parameters": {"long_inputs": "cut"}},
        422,
        "/parameters/long_inputs",
        "refuse",
        "cut",
        "'average' or 'refuse'",
    ),
    (CLS, {"inputs": ["a", 7]}, 422, "/inputs/1", "string", "7", None),
    (CLS, {"inputs": [7] * 4}, 422, "/inputs/0", "string", "7", None),
    (CLS, {"inputs": [7] * 100_000}, 413, "/inputs", "100000 inputs", "100000", "4"),
    (CLS, {"inputs": None}, 422, "/inputs", "string", "null", None),
    (
        CLS,
        b'{"inputs": "a\\ud800b"}',
        422,
        "/inputs",
        "half a surrogate pair, U+D800, at character 1",
        "a\\ud800b",
        None,
    ),
    (CLS, b'{"inputs": "a", "\\ud800/~": 1}', 422, "/\\ud800~1~0", "no such field", None, None),
    (CLS, {"inputs": ["a", " "]}, 422, "/inputs/1", "no words", " ", None),
    (CLS, {"inputs": "a" * 101}, 413, "/inputs", "101 characters", "101", "100"),
    (CLS, {"inputs": ["a"] * 5}, 413, "/inputs", "5 inputs", "5", "4"),
    (CLS, {"inputs": ["a " * 49] * 4}, 413, "/inputs", "tokens are more", "244", "200"),
    (
        CLS,
        {"inputs": "a", "model": "tekst"},
        404,
        "/model",
        "did you mean 'text'?; here: question, text, token",
        "tekst",
        None,
    ),
    (CLS, {"inputs": "a", "model": "token"}, 422, "/model", "does token-classification", "token", None),
    (QA, {"inputs": "a"}, 422, "/inputs", "JSON object", "a", None),
    (QA, {"inputs": {"question": "a"}}, 422, "/inputs/context", "required", None, None),
    (QA, {"inputs": [{**ASKED, "contxt": "a"}]}, 422, "/inputs/0/contxt", "did you mean 'context'", None, None),
    (QA, {"inputs": {**ASKED, "question": "a " * 20}}, 422, "/inputs/question", "shorten it", "20", "14"),
    (QA, {"inputs": {**ASKED, "context": "a" * 101}}, 413, "/inputs/context", "101 characters", "101", "100"),
    (
        QA,
        {"inputs": ASKED, "parameters": {"stride": 31}},
        422,
        "/parameters/stride",
        "25 tokens of text",
        "31",
        "24",
    ),
    (QA, {"inputs": ASKED, "parameters": {"top_k": 101}}, 422, "/parameters/top_k", "less than", "101", "100"),
    (
        NER,
        {"inputs": "a", "parameters": {"ignore_labels": ["X"]}},
        422,
        "/parameters/ignore_labels/0",
        "known: LOC, O",
        "X",
        None,
    ),
]


@pytest.mark.parametrize(("task", "body", "status", "pointer", "message", "value", "limit"), BAD)
def test_bad_input_is_named_with_pointer_value_and_limit(
    models: dict[str, tuple[Model, Formula]],
    task: str,
    body: Any,
    status: int,
    pointer: str | None,
    message: str,
    value: str | None,
    limit: str | None,
) -> None:
    response = post(models, task, body, max_text_chars=100, max_inputs=4, max_queue_tokens=200)
    problem = response.json()
    assert (response.status_code, problem["status"]) == (status, status)
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["request_id"] == response.headers["x-request-id"]
    assert problem["error"] == problem["detail"] != ""
    assert problem["title"] and problem["type"] == "about:blank"
    assert message in problem["detail"]
    if pointer is not None:
        field = problem["errors"][0]
        assert (field["pointer"], field.get("value"), field.get("limit")) == (pointer, value, limit)
        assert message in field["message"]
    assert all(not formula.batches for _, formula in models.values())


def test_the_body_limit_holds_with_and_without_a_length(models: dict[str, tuple[Model, Formula]]) -> None:
    async def conversation(http: httpx.AsyncClient) -> list[httpx.Response]:
        async def chunks() -> Any:
            for _ in range(3):
                yield b" " * 500

        headers = {"content-type": "application/json"}
        return [await http.post(f"/v1/{CLS}", content=content, headers=headers) for content in (b" " * 1025, chunks())]

    for response in fake.talk([models[CLS][0]], conversation, max_body_bytes=1024):
        assert response.status_code == 413
        assert response.json()["errors"][0]["limit"] == "1024"


def test_large_bodies_are_bounded_together_and_small_ones_get_in(models: dict[str, tuple[Model, Formula]]) -> None:
    model, formula = models[CLS]
    large = b'{"inputs": "a"' + b" " * 40_000 + b"}"

    async def conversation(http: httpx.AsyncClient) -> None:
        def ask(content: bytes) -> "asyncio.Future[httpx.Response]":
            headers = {"content-type": "application/json"}
            return asyncio.ensure_future(http.post(f"/v1/{CLS}", content=content, headers=headers))

        formula.gate.clear()
        held = [ask(large) for _ in range(BODIES)]
        await fake.wait_until(lambda: f"queue_tokens {3 * BODIES}.0".encode() in http.app.state.health.page())  # type: ignore[attr-defined]
        refused = await ask(large)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert f"holds {BODIES * len(large)} bytes" in refused.json()["detail"]
        small = ask(b'{"inputs": "a"}')
        formula.gate.set()
        assert {response.status_code for response in await asyncio.gather(small, *held)} == {200}
        assert (await ask(large)).status_code == 200, "what was held is forgotten"

    fake.talk([model], conversation, max_body_bytes=len(large))


def test_only_json_is_read(models: dict[str, tuple[Model, Formula]]) -> None:
    async def conversation(http: httpx.AsyncClient) -> list[int]:
        types = [
            "text/plain",
            "application/x-www-form-urlencoded",
            "",
            "application/json; charset=utf-8",
            "application/x+json",
        ]
        return [
            (await http.post(f"/v1/{CLS}", content=b'{"inputs":"a"}', headers={"content-type": media})).status_code
            for media in types
        ]

    assert fake.talk([models[CLS][0]], conversation) == [415, 415, 415, 200, 200]


def test_a_packed_body_is_refused_and_an_empty_one_needs_no_type(models: dict[str, tuple[Model, Formula]]) -> None:
    async def conversation(http: httpx.AsyncClient) -> None:
        async def chunks() -> Any:
            yield gzip.compress(b'{"inputs": "a"}')

        headers = {"content-type": "application/json", "content-encoding": "gzip"}
        for content in (gzip.compress(b'{"inputs": "a"}'), chunks()):
            refused = await http.post(f"/v1/{CLS}", content=content, headers=headers)
            assert (refused.status_code, "content encoding is 'gzip'" in refused.json()["detail"]) == (415, True)
        plain = await http.post(f"/v1/{CLS}", json={"inputs": "a"}, headers={"content-encoding": "identity"})
        assert plain.status_code == 200
        assert (await http.post(f"/v1/{CLS}")).status_code == 400

    fake.talk([models[CLS][0]], conversation)


def test_unknown_paths_and_methods_have_problem_bodies_too(models: dict[str, tuple[Model, Formula]]) -> None:
    async def conversation(http: httpx.AsyncClient) -> list[httpx.Response]:
        slash = await http.post(f"/v1/{CLS}/", json={"inputs": "a"})
        return [await http.get("/nowhere"), await http.get(f"/v1/{CLS}"), slash]

    missing, method, slash = fake.talk([models[CLS][0]], conversation)
    assert slash.status_code == 404, "a redirect would be counted as an answer"
    assert (missing.status_code, method.status_code, method.headers["allow"]) == (404, 405, "POST")
    assert missing.headers["content-type"] == method.headers["content-type"] == "application/problem+json"


def test_whatever_get_may_ask_head_may_too(models: dict[str, tuple[Model, Formula]]) -> None:
    async def conversation(http: httpx.AsyncClient) -> None:
        document = (await http.get("/openapi.json")).json()
        paths = [path.replace("{name}", "text").replace("{version}", "1") for path in document["paths"]]
        asked = [path for path, methods in zip(paths, document["paths"].values(), strict=True) if "get" in methods]
        assert len(asked) > 10
        for path in (*asked, "/", "/docs", "/v2/", "/openapi.json", "/models/nobody"):
            whole, head = await http.get(path), await http.head(path)
            assert (head.status_code, head.content) == (whole.status_code, b""), path
            assert head.headers["content-type"] == whole.headers["content-type"]
            if path != "/metrics":  # whose numbers change
                assert head.headers["content-length"] == whole.headers["content-length"], path
        assert not [methods for methods in document["paths"].values() if "head" in methods]
        assert (await http.head(f"/v1/{CLS}")).status_code == 405

    fake.talk([models[CLS][0]], conversation)


def test_a_task_without_a_model_says_so(models: dict[str, tuple[Model, Formula]]) -> None:
    response = post({CLS: models[CLS]}, NER, {"inputs": "a"})
    assert response.status_code == 404
    assert "no model here does token-classification" in response.json()["detail"]


def test_a_sane_request_id_is_kept_and_another_replaced(models: dict[str, tuple[Model, Formula]]) -> None:
    async def conversation(http: httpx.AsyncClient) -> list[str]:
        given = ["abc-123", "a b", "x" * 129, "<script>"]
        return [(await http.get("/healthz", headers={"x-request-id": g})).headers["x-request-id"] for g in given]

    kept, *minted = fake.talk([models[CLS][0]], conversation)
    assert kept == "abc-123"
    assert all(len(value) == 32 and value.isalnum() for value in minted)


@pytest.mark.parametrize("log_texts", [True, False])
def test_a_defect_is_a_500_that_tells_the_client_nothing_but_the_id(
    models: dict[str, tuple[Model, Formula]],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    log_texts: bool,
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr("service.pipeline.decode_all", broken)
    caplog.handler.setFormatter(JsonFormatter())
    response = post(models, CLS, {"inputs": "a"}, log_texts=log_texts)
    assert response.status_code == 500
    assert "secret" not in response.text
    (line,) = (json.loads(line) for line in caplog.text.splitlines() if '"error"' in line)
    assert line["request_id"] == response.json()["request_id"]
    assert "in broken" in json.dumps(line), "the way to the defect"
    # The message of an exception may quote the text.
    assert ("RuntimeError: secret" in json.dumps(line)) == log_texts


def test_probes_answer_while_the_engine_is_busy(models: dict[str, tuple[Model, Formula]]) -> None:
    formula = models[CLS][1]

    async def conversation(http: httpx.AsyncClient) -> None:
        formula.gate.clear()
        asked = asyncio.ensure_future(http.post(f"/v1/{CLS}", json={"inputs": "a"}))
        await fake.wait_until(formula.started.is_set)
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await http.get(path)).status_code == 200
        assert not asked.done()
        formula.gate.set()
        assert (await asked).status_code == 200

    fake.talk([models[CLS][0]], conversation)


def test_long_texts_are_read_off_the_event_loop_and_do_not_hold_up_others(
    models: dict[str, tuple[Model, Formula]], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, seen = threading.current_thread(), []
    for name in ("encode_all", "decode_all"):
        work = getattr(pipeline, name)

        def noted(*arguments: Any, work: Any = work) -> Any:
            seen.append(threading.current_thread())
            return work(*arguments)

        monkeypatch.setattr(pipeline, name, noted)
    for characters, thread in ((pipeline.AT_ONCE, "text_0"), (pipeline.LONG, "long-text_0")):
        assert post(models, CLS, {"inputs": ["a" * 100] * (characters // 100)}, max_inputs=1000).status_code == 200
        assert [one.name for one in seen] == [thread] * 2
        seen.clear()
    assert post(models, CLS, {"inputs": "a"}).status_code == 200
    assert seen == [loop] * 2, "so little is done where it is"
    seen.clear()
    # Windows that overlap by all but a token: a short text, and many tokens to make answers of.
    asked = {"inputs": "john " * 399, "parameters": {"stride": 29}}
    assert post(models, NER, asked).status_code == 200
    assert [one.name for one in seen] == [loop.name, "text_0"]


def test_readiness_names_what_failed_and_ends_when_the_server_stops(models: dict[str, tuple[Model, Formula]]) -> None:
    model = models[CLS][0]

    async def story() -> None:
        async with fake.client(Models({model.name: model}, {"qa": "ChecksumError: x"}), fake.settings()) as http:
            response = await http.get("/readyz")
            assert (response.status_code, response.json()["detail"]) == (503, "qa: ChecksumError: x")
            assert "sparselane_ready 0.0" in (await http.get("/metrics")).text
            unknown = await http.post(f"/v1/{CLS}", json={"inputs": "a", "model": "qa"})
            assert "failed to load: qa" in unknown.json()["detail"]
        async with fake.client(Models({model.name: model}, {}), fake.settings()) as http:
            assert (await http.get("/readyz")).json() == {"status": "ready", "models": ["text"]}
            http.app.state.lifecycle.stopping = True  # type: ignore[attr-defined]
            response = await http.get("/readyz")
            assert (response.status_code, response.headers["connection"]) == (503, "close")
            assert (await http.get("/healthz")).status_code == 200
            assert (await http.post(f"/v1/{CLS}", json={"inputs": "a"})).status_code == 200

    asyncio.run(story())


def test_a_full_queue_is_a_503_with_retry_after_and_later_it_works(models: dict[str, tuple[Model, Formula]]) -> None:
    model, formula = models[CLS]

    async def conversation(http: httpx.AsyncClient) -> None:
        formula.gate.clear()
        body = {"inputs": "a " * 20}
        asked = [asyncio.ensure_future(http.post(f"/v1/{CLS}", json=body)) for _ in range(3)]

        async def full() -> bool:
            return "sparselane_queue_tokens 66.0" in (await http.get("/metrics")).text

        async with asyncio.timeout(30):
            while not await full():
                await asyncio.sleep(0.001)
        refused = await http.post(f"/v1/{CLS}", json=body)
        assert (refused.status_code, refused.json()["title"]) == (503, "Overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        formula.gate.set()
        assert [(await task).status_code for task in asked] == [200] * 3
        assert (await http.post(f"/v1/{CLS}", json=body)).status_code == 200
        page = (await http.get("/metrics")).text
        assert 'sparselane_requests_total{model="text",outcome="overloaded",task="text-classification"} 1.0' in page

    fake.talk([model], conversation, max_queue_tokens=70)


def test_what_can_never_fit_is_a_413_under_load_too(models: dict[str, tuple[Model, Formula]]) -> None:
    model, formula = models[CLS]

    async def conversation(http: httpx.AsyncClient) -> None:
        formula.gate.clear()
        asked = asyncio.ensure_future(http.post(f"/v1/{CLS}", json={"inputs": "a"}))
        await fake.wait_until(formula.started.is_set)
        refused = await http.post(f"/v1/{CLS}", json={"inputs": ["film " * 200] * 3})
        assert (refused.status_code, "retry-after" in refused.headers) == (413, False), refused.text
        assert "tokens are more than the 300 that this server holds" in refused.json()["detail"]
        # What only seems too large is answered.
        blank = asyncio.ensure_future(http.post(f"/v1/{CLS}", json={"inputs": "a" + " " * 5000}))
        await fake.wait_until(lambda: b"queue_tokens 6.0" in http.app.state.health.page())  # type: ignore[attr-defined]
        formula.gate.set()
        assert [response.status_code for response in await asyncio.gather(asked, blank)] == [200, 200]

    fake.talk([model], conversation, max_queue_tokens=300)


def test_a_client_that_leaves_takes_its_queued_work_with_it(models: dict[str, tuple[Model, Formula]]) -> None:
    model, formula = models[CLS]
    app = create_app(fake.settings(max_batch_tokens=64), Models({model.name: model}, {}))
    body = json.dumps({"inputs": ["the " * 25] * 3}).encode()
    sent: list[Any] = []

    async def call(gone: asyncio.Event) -> None:
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": f"/v1/{CLS}", "headers": headers, "query_string": b""}
        await app(scope, receive, send)

    async def story() -> None:
        async with app.router.lifespan_context(app):
            formula.gate.clear()
            gone = asyncio.Event()
            asked = asyncio.ensure_future(call(gone))
            await fake.wait_until(formula.started.is_set)
            gone.set()
            await asked
            formula.gate.set()
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                page = (await http.get("/metrics")).text
        assert formula.batches == [[27, 27]]
        assert [message["status"] for message in sent if message["type"] == "http.response.start"] == [499]
        assert 'sparselane_requests_total{model="text",outcome="cancelled",task="text-classification"} 1.0' in page

    asyncio.run(story())


def test_metrics_are_there_from_the_start_and_count(models: dict[str, tuple[Model, Formula]]) -> None:
    async def conversation(http: httpx.AsyncClient) -> tuple[str, str]:
        before = (await http.get("/metrics")).text
        answered = await http.post(f"/v1/{NER}", json={"inputs": "john was in london"})
        assert {part.partition(";")[0] for part in answered.headers["server-timing"].split(", ")} == set(STAGES) - {
            TOTAL
        }
        assert (await http.post(f"/v1/{NER}", json={"inputs": 1})).status_code == 422
        return before, (await http.get("/metrics")).text

    before, after = fake.talk([model for model, _ in models.values()], conversation)
    for task, (model, _) in models.items():
        for outcome in ("ok", *(meaning.outcome for meaning in HTTP.values())):
            assert f'requests_total{{model="{model.name}",outcome="{outcome}",task="{task}"}} 0.0' in before
        for name, _ in STAGES.values():
            count = f'sparselane_{name}_seconds_count{{model="{model.name}",task="{task}"}}'
            assert f"{count} 0.0" in before
            assert f"{count} {float(task == NER)}" in after
        assert f'sparselane_model_info{{model="{model.name}"' in before
    assert 'outcome="ok",task="token-classification"} 1.0' in after
    assert 'sparselane_requests_total{model="none",outcome="invalid",task="token-classification"} 1.0' in after
    assert 'sparselane_batch_tokens_sum{kind="real"} 6.0' in after
    assert 'sparselane_batch_tokens_sum{kind="padded"} 8.0' in after


def test_the_document_has_examples_that_work_and_no_loose_ends(models: dict[str, tuple[Model, Formula]]) -> None:
    async def conversation(http: httpx.AsyncClient) -> dict[str, Any]:
        document = (await http.get("/openapi.json")).json()
        assert (await http.get("/docs")).status_code == 200
        for task in TASKS:
            operation = document["paths"][f"/v1/{task}"]["post"]
            name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
            for example in document["components"]["schemas"][name]["examples"]:
                assert (await http.post(f"/v1/{task}", json=example)).status_code == 200
            assert {"200", "400", "404", "408", "413", "415", "422", "503"} <= set(operation["responses"])
            assert set(operation["responses"]["422"]["content"]) == {"application/problem+json"}
        return dict(document)

    document = fake.talk([fake_model for fake_model, _ in models.values()], conversation)
    text = json.dumps(document)
    for part in text.split('"$ref": "#/components/schemas/')[1:]:
        assert part.partition('"')[0] in document["components"]["schemas"]


def test_concurrent_requests_answer_as_alone(models: dict[str, tuple[Model, Formula]]) -> None:
    rng = np.random.default_rng(0)
    words = ["john", "mary", "london", "the", "film", "was", "in", "of", "good", "bad", "who"]
    bodies = []
    for number in range(60):
        text = " ".join(rng.choice(words, rng.integers(1, 60)))
        task = (QA, CLS, NER)[number % 3]
        bodies.append((task, {"inputs": {"question": "who", "context": text} if task == QA else text}))

    async def conversation(http: httpx.AsyncClient) -> None:
        alone = [(await http.post(f"/v1/{task}", json=body)).json() for task, body in bodies]
        together = await asyncio.gather(*(http.post(f"/v1/{task}", json=body) for task, body in bodies))
        assert [response.json() for response in together] == alone

    fake.talk([model for model, _ in models.values()], conversation, max_batch_tokens=100)
