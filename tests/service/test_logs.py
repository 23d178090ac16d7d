"""One line per request, for people or for machines; never a caller's text, unless asked."""

import json
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest

from service import pipeline
from service.logs import PLAIN, JsonFormatter, PlainFormatter, where
from service.models import Model
from tests.service import fake
from tests.service.fake import Formula

QA, CLS, NER = "question-answering", "text-classification", "token-classification"
SECRET = "xylophone"


@pytest.fixture
def models(tmp_path: Path) -> dict[str, tuple[Model, Formula]]:
    return {task: fake.model(tmp_path, task) for task in (QA, CLS, NER)}


async def provoke(http: httpx.AsyncClient, models: dict[str, tuple[Model, Formula]]) -> None:
    """Ask with the secret in every place that a text may stand in, for every kind of answer."""
    question = {"question": f"who has a {SECRET}", "context": f"mary has a {SECRET}"}
    inputs: list[tuple[str, Any]] = [(QA, question), (CLS, SECRET), (NER, [SECRET, SECRET])]
    for task, item in inputs:
        assert (await http.post(f"/v1/{task}", json={"inputs": item})).status_code == 200
        assert (await http.post(f"/v1/{task}", json={"inputs": {"text": SECRET}})).status_code == 422
        assert (await http.post(f"/v1/{task}?text={SECRET}", content=SECRET)).status_code == 415
    headers = {"content-type": "application/json"}
    assert (await http.post(f"/v1/{CLS}", content=f'{{"inputs": "{SECRET}', headers=headers)).status_code == 400
    assert (await http.post(f"/v1/{CLS}", json={"inputs": "a", SECRET: 1})).status_code == 422
    assert (await http.post(f"/v1/{CLS}", json={"inputs": SECRET * 100})).status_code == 413
    assert (await http.post(f"/v1/{CLS}", json={"inputs": "a", "model": SECRET})).status_code == 404
    models[CLS][1].error = ValueError("sequence 3 is empty")
    assert (await http.post(f"/v1/{CLS}", json={"inputs": SECRET})).status_code == 500


@pytest.mark.parametrize("formatter", [JsonFormatter(), PlainFormatter(PLAIN)])
@pytest.mark.parametrize("log_texts", [False, True])
def test_no_text_is_logged_unless_asked(
    models: dict[str, tuple[Model, Formula]],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    formatter: logging.Formatter,
    log_texts: bool,
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.handler.setFormatter(formatter)

    def quoting(*arguments: Any) -> None:
        raise KeyError(str(arguments[2]))

    async def conversation(http: httpx.AsyncClient) -> None:
        await provoke(http, models)
        # A defect of ours whose message quotes the text.
        monkeypatch.setattr(pipeline, "decode_all", quoting)
        models[CLS][1].error = None
        assert (await http.post(f"/v1/{CLS}", json={"inputs": SECRET})).status_code == 500

    fake.talk([model for model, _ in models.values()], conversation, max_text_chars=200, log_texts=log_texts)
    # The client writes lines of its own, with the address that it asked.
    ours = "".join(line for line in caplog.text.splitlines(keepends=True) if "HTTP Request:" not in line)
    assert "sequence 3 is empty" in ours, "the engine never sees a text: its message helps"
    assert "in quoting" in ours
    assert (SECRET in ours) == log_texts


def test_a_line_says_what_a_request_was_and_where_its_time_went(
    models: dict[str, tuple[Model, Formula]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    caplog.handler.setFormatter(JsonFormatter())
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {
        "x-request-id": "id-1",
        "traceparent": f"00-{trace}-b7ad6b7169203331-01",
        "x-amzn-trace-id": "Root=1-5759e988",
    }

    async def conversation(http: httpx.AsyncClient) -> None:
        assert (await http.post(f"/v1/{NER}", json={"inputs": "john"}, headers=headers)).status_code == 200
        assert (await http.post(f"/v1/{NER}", json={"inputs": "a" * 101})).status_code == 413
        assert (await http.get("/healthz")).status_code == 200

    fake.talk([models[NER][0]], conversation, max_text_chars=100)
    lines = [json.loads(line) for line in caplog.text.splitlines() if '"outcome"' in line]
    assert len(lines) == 2, "a probe writes none"
    answered, refused = lines
    stages = [answered.pop(f"{stage}_ms") for stage in ("tokenize", "queue", "infer", "post")]
    assert 0 <= sum(stages) <= answered.pop("ms") + 0.1
    assert answered.pop("time").endswith("+00:00")
    assert answered == {
        "level": "info",
        "logger": "sparselane",
        "message": f"POST /v1/{NER} 200",
        "request_id": "id-1",
        "trace_id": trace,
        "method": "POST",
        "route": f"/v1/{NER}",
        "status": 200,
        "outcome": "ok",
        "model": "token",
        "task": NER,
        "tokens": 3,
        "windows": 1,
        "amzn_trace_id": "Root=1-5759e988",
    }
    assert (refused["status"], refused["outcome"], refused["model"]) == (413, "invalid", "token")
    assert "trace_id" not in refused


@pytest.mark.parametrize("formatter", [JsonFormatter(), PlainFormatter(PLAIN)])
def test_nobody_can_forge_a_line(
    models: dict[str, tuple[Model, Formula]], caplog: pytest.LogCaptureFixture, formatter: logging.Formatter
) -> None:
    caplog.set_level(logging.INFO, "sparselane")
    caplog.handler.setFormatter(formatter)

    async def conversation(http: httpx.AsyncClient) -> None:
        forged = "/a%0A2026-11-21 INFO forged%E2%80%A8%C2%85forged%1B[2J"
        assert (await http.get(forged, headers={"x-amzn-trace-id": "a b", "x-request-id": 'a"b'})).status_code == 404

    fake.talk([models[NER][0]], conversation)
    (line,) = (one for one in caplog.text.splitlines() if "forged" in one)
    assert line.isascii() and line.isprintable()
    assert "amzn" not in line


def test_where_an_error_comes_from_has_its_causes_and_no_message() -> None:
    try:
        try:
            int("secret")
        except ValueError as error:
            raise RuntimeError("secret") from error
    except RuntimeError as error:
        text = where(error)
    assert "RuntimeError" in text and "raised from" in text and text.endswith("ValueError")
    assert text.count("test_where_an_error_comes_from") == 2
