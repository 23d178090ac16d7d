"""The real clients of Hugging Face against a real server: what they return is what the server said."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import transformers4
from tests.service import artifacts, hub_client
from tests.service.test_server import Process, running

JAVASCRIPT = Path(sys.prefix) / "javascript"
HERE = Path(__file__).parent
CONTEXT = hub_client.QUESTION["context"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = artifacts.write_all(tmp_path_factory.mktemp("models"))
    with running(folder, SPARSELANE_NOTICE_SECONDS="0") as process:
        yield process


@pytest.fixture(scope="module", params=["installed", "0.36"])
def told(request: pytest.FixtureRequest, server: Process) -> dict[str, Any]:
    """What huggingface_hub returns for each of its calls: the newest in this process, 0.36 in one of its own."""
    address = f"http://127.0.0.1:{server.port}"
    if request.param == "installed":
        return hub_client.talk(address)
    if not transformers4.FOLDER.is_dir():
        pytest.skip(f"no huggingface_hub 0.36 in {transformers4.FOLDER}: run `make setup`")
    result: dict[str, Any] = transformers4.run(HERE / "hub_client.py", address)
    assert result["version"].startswith("0.36.")
    return result


def said(server: Process, name: str, inputs: Any, **parameters: Any) -> Any:
    """Return what the server answers to the same question over plain HTTP."""
    status, body = server.ask("POST", f"/models/{name}", {"inputs": inputs, "parameters": parameters})
    assert status == 200, body
    return body if isinstance(body, dict) else json.loads(body)


def test_answers(server: Process, told: dict[str, Any]) -> None:
    assert told["answer"] == said(server, "qa", hub_client.QUESTION)
    assert told["answer"]["answer"] == CONTEXT[told["answer"]["start"] : told["answer"]["end"]] != ""
    assert len(told["answers"]) == 3
    scores = [answer["score"] for answer in told["answers"]]
    assert scores == sorted(scores, reverse=True)


def test_labels(server: Process, told: dict[str, Any]) -> None:
    assert [told["labels"]] == said(server, "sentiment", hub_client.TEXT)
    assert {label["label"] for label in told["labels"]} == {"negative", "positive"}
    assert len(told["best label"]) == 1
    assert told["logits"] == said(server, "sentiment", hub_client.LONG, function_to_apply="none")[0]


def test_entities(server: Process, told: dict[str, Any]) -> None:
    assert told["entities"] == said(server, "ner", hub_client.TEXT)
    assert all("entity_group" in entity for entity in told["entities"])
    asked = {"aggregation_strategy": "average", "ignore_labels": ["PER"], "stride": 16}
    assert told["long entities"] == said(server, "ner", hub_client.LONG, **asked) != []
    assert all("-" in token["entity"] or token["entity"] == "O" for token in told["tokens"])
    assert [token["word"] for token in told["tokens"]] == hub_client.TEXT.split()


def test_refusals_say_what_was_wrong(told: dict[str, Any]) -> None:
    assert "there is no such model; did you mean 'sentiment'?" in told["unknown model"]
    assert "neighbours can share at most" in told["wrong stride"]


def test_health_and_info(told: dict[str, Any]) -> None:
    assert told["health"] == [True, False]
    assert (told["info"]["model_id"], told["info"]["pipeline_tag"]) == ("ner", "token-classification")
    assert len(told["info"]["model_sha"]) == 64


def test_the_javascript_client(server: Process) -> None:
    node = shutil.which("node")
    if node is None or not (JAVASCRIPT / "node_modules").is_dir():
        pytest.skip(f"no node, or no @huggingface/inference in {JAVASCRIPT}: install node and npm, then `make setup`")
    command = [node, str(HERE / "javascript" / "client.mjs"), str(JAVASCRIPT), f"http://127.0.0.1:{server.port}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    question, text = hub_client.QUESTION, hub_client.TEXT
    every = {"max_answer_len": 3, "doc_stride": 4, "align_to_words": False, "handle_impossible_answer": True}
    assert told["answer"] == said(server, "qa", question)
    assert told["bestOfThree"] == said(server, "qa", question, top_k=3, **every)[0]
    assert told["global"] == said(server, "qa", question, scoring="global")
    assert [told["labels"]] == said(server, "sentiment", text)
    assert [told["bestLabel"]] == said(server, "sentiment", text, top_k=1)
    assert told["entities"] == said(server, "ner", text)
    assert told["first"] == said(server, "ner", text, aggregation_strategy="first", ignore_labels=[])
    assert "did you mean 'ner'" in told["unknownModel"]
    assert "neighbours can share at most" in told["wrongStride"]
