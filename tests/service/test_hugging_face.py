"""/models/{name}: bodies, shapes, errors, and what else clients ask; test_hugging_face_answers.py judges the values."""

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.models import Model, Models
from tests.service import fake

QA, CLS, NER = "question-answering", "text-classification", "token-classification"
ASKED = {"question": "who was in london", "context": "john was in paris. mary was in london."}
PAIR = {"text": "a good film", "text_pair": "a bad film"}
ENTITY = {"entity_group", "score", "word", "start", "end"}


@pytest.fixture
def models(tmp_path: Path) -> list[Model]:
    made = [fake.model(tmp_path, task)[0] for task in (QA, CLS, NER)]
    pairs, _ = fake.model(tmp_path, CLS, name="pairs")
    return [*made, dataclasses.replace(pairs, pairs=True)]


def post(models: list[Model], path: str, body: Any, **overrides: Any) -> httpx.Response:
    async def conversation(http: httpx.AsyncClient) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await http.post(path, content=content, headers={"content-type": "application/json"})

    response: httpx.Response = fake.talk(models, conversation, **overrides)
    return response


def answer(models: list[Model], name: str, inputs: Any, **parameters: Any) -> Any:
    response = post(models, f"/models/{name}", {"inputs": inputs, "parameters": parameters})
    assert response.status_code == 200, response.text
    return response.json()


def test_one_answer_is_an_object_and_several_are_a_list(models: list[Model]) -> None:
    one = answer(models, "question", ASKED)
    assert list(one) == ["score", "start", "end", "answer"]
    assert one["answer"] == ASKED["context"][one["start"] : one["end"]]
    several = answer(models, "question", ASKED, top_k=2)
    assert [type(entry) for entry in several] == [dict, dict] and several[0] == one
    # As in the pipeline: one question is no list, however it came, and one answer no list, whatever top_k.
    assert answer(models, "question", [ASKED]) == one
    assert isinstance(answer(models, "question", {**ASKED, "context": "paris"}, top_k=5), dict)
    assert answer(models, "question", ASKED, max_answer_len=10**30) == answer(
        models, "question", ASKED, max_answer_len=25
    )


def test_questions_come_one_by_one_or_in_columns(models: list[Model]) -> None:
    other = {**ASKED, "question": "what film"}
    rows = answer(models, "question", [ASKED, other])
    columns = {"question": [ASKED["question"], other["question"]], "context": ASKED["context"]}
    assert rows == answer(models, "question", columns)
    assert rows == answer(models, "question", {**columns, "context": [ASKED["context"]] * 2})
    assert rows == [answer(models, "question", ASKED), answer(models, "question", other)]
    assert answer(models, "question", []) == answer(models, "question", {"question": [], "context": "x"}) == []


def test_labels_are_a_list_for_each_text(models: list[Model]) -> None:
    ((first, second),) = answer(models, "text", "a good film")
    assert first["score"] + second["score"] == pytest.approx(1)
    assert answer(models, "text", "a good film", top_k=1) == [[first]]
    assert answer(models, "text", "a good film", top_k=1, return_all_scores=True) == [[first, second]]
    assert answer(models, "text", ["a good film"], function_to_apply=None) == [[first, second]]
    assert [len(labels) for labels in answer(models, "text", ["a", "b"], top_k=1)] == [1, 1]
    assert answer(models, "text", []) == []


def test_five_labels_are_answered_unless_more_are_asked_for(tmp_path: Path) -> None:
    model, formula = fake.model(tmp_path, CLS)
    formula.labels = 7
    model = dataclasses.replace(model, labels=tuple("abcdefg"))
    for parameters, count in (({}, 5), ({"top_k": 6}, 6), ({"top_k": None}, 7), ({"return_all_scores": True}, 7)):
        assert len(answer([model], "text", "a good film", **parameters)[0]) == count


def test_pairs_are_labelled_by_models_that_read_pairs(models: list[Model]) -> None:
    (labels,) = answer(models, "pairs", PAIR)
    assert answer(models, "pairs", [PAIR, PAIR]) == [labels, labels]
    typed = post(models, f"/v1/{CLS}", {"inputs": PAIR, "model": "pairs"}).json()
    assert typed["results"] == [labels]
    assert typed["usage"] == {"tokens": 9, "windows": 1}


def test_entities_are_a_list_of_lists_where_a_list_was_sent(models: list[Model]) -> None:
    text = "john was in london"
    entities = answer(models, "token", text, ignore_labels=[])
    assert entities and all(set(entity) == ENTITY for entity in entities)
    assert answer(models, "token", [text], ignore_labels=[]) == [entities]
    assert answer(models, "token", [text, ""], ignore_labels=[]) == [entities, []]
    assert answer(models, "token", " ") == answer(models, "token", []) == []
    tokens = answer(models, "token", text, aggregation_strategy="none", ignore_labels=[])
    assert [set(token) for token in tokens] == [ENTITY - {"entity_group"} | {"entity", "index"}] * 4


def test_options_change_nothing_and_headers_say_how_much_was_read(models: list[Model]) -> None:
    body = {"inputs": "the " * 40, "options": {"use_cache": False, "wait_for_model": True}}
    response = post(models, "/models/text", body)
    assert response.json() == answer(models, "text", "the " * 40)
    assert (response.headers["x-input-tokens"], response.headers["x-windows"]) == ("52", "2")
    assert response.headers["content-type"] == "application/json"
    assert "infer;dur=" in response.headers["server-timing"]


# Model, body, status, pointer, something of the message.
BAD: list[tuple[str, Any, int, str | None, str]] = [
    ("text", b'{"inputs": ', 400, None, "the body is no JSON: Expecting value"),
    ("text", b"", 400, None, "the body is empty"),
    ("text", b"\xff\xfe", 400, None, "no JSON"),
    ("text", b"[" * 100_000, 400, None, "no JSON"),
    ("text", [1], 422, "", "JSON object"),
    ("text", {"parameters": {}}, 422, "/inputs", "required"),
    ("text", {"inputs": 7}, 422, "/inputs", "string"),
    ("text", {"inputs": ["a", 7]}, 422, "/inputs/1", "string"),
    ("text", {"inputs": ["a", {"text": "b"}]}, 422, "/inputs/1/text_pair", "required"),
    ("text", {"inputs": "a", "parameters": {"topk": 1}}, 422, "/parameters/topk", "did you mean 'top_k'"),
    ("text", {"inputs": "a", "parameters": {"truncation": True}}, 422, "/parameters/truncation", "no such field"),
    ("text", {"inputs": "a", "parameters": {"function_to_apply": "max"}}, 422, "/parameters/function_to_apply", "soft"),
    ("text", {"inputs": PAIR}, 422, "/inputs", "the model reads single texts"),
    ("pairs", {"inputs": "a"}, 422, "/inputs", "the model reads pairs"),
    ("pairs", {"inputs": {**PAIR, "text_pair": "a" * 101}}, 413, "/inputs/text_pair", "101 characters"),
    ("text", {"inputs": ["a"] * 5}, 413, "/inputs", "5 inputs"),
    ("text", {"inputs": [7] * 5}, 413, "/inputs", "5 inputs"),
    ("token", {"inputs": PAIR}, 422, "/inputs", "string"),
    ("token", {"inputs": "a", "parameters": {"aggregation_strategy": "last"}}, 422, None, "'none', 'simple'"),
    ("question", {"inputs": "a"}, 422, "/inputs", "JSON object"),
    ("question", {"inputs": {"question": ["a", 1], "context": "b"}}, 422, "/inputs/question/1", "string"),
    ("question", {"inputs": {"question": ["a"], "context": [" "]}}, 422, "/inputs/context", "no words"),
    ("question", {"inputs": {"question": [""] * 5, "context": "é" * 101}}, 413, "/inputs", "5 inputs"),
    ("question", {"inputs": {"question": "a", "context": [7] * 5}}, 413, "/inputs", "5 inputs"),
    ("question", {"inputs": [7] * 5}, 413, "/inputs", "5 inputs"),
    ("question", {"inputs": [ASKED, {**ASKED, "contxt": ""}]}, 422, "/inputs/1/contxt", "did you mean 'context'"),
    ("question", {"inputs": ASKED, "parameters": {"max_question_len": 3}}, 422, "/inputs/question", "at most 3 were"),
    ("question", {"inputs": ASKED, "parameters": {"max_seq_len": 33}}, 422, "/parameters/max_seq_len", "at most 32"),
    ("question", {"inputs": ASKED, "parameters": {"doc_stride": 40}}, 422, "/parameters/doc_stride", "at most 24"),
    ("tekst", {"inputs": "a"}, 404, None, "there is no such model; did you mean 'text'?; here: pairs, question, text"),
]


@pytest.mark.parametrize(("name", "body", "status", "pointer", "message"), BAD)
def test_bad_input_is_named_in_the_member_that_clients_show(
    models: list[Model], name: str, body: Any, status: int, pointer: str | None, message: str
) -> None:
    response = post(models, f"/models/{name}", body, max_text_chars=100, max_inputs=4)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["error"] == problem["detail"]
    assert message in problem["error"]
    if pointer is not None:
        assert problem["errors"][0]["pointer"] == pointer


def test_the_root_answers_for_the_only_model(models: list[Model]) -> None:
    body = {"inputs": "a good film"}
    assert post(models[1:2], "/", body).json() == post(models, "/models/text", body).json()
    refused = post(models, "/", body)
    assert refused.status_code == 404
    assert "4 models: use the URL of one, here: /models/pairs, /models/question" in refused.json()["error"]


def test_health_and_info(models: list[Model]) -> None:
    async def story() -> None:
        serving = {model.name: model for model in models}
        async with fake.client(Models(serving, {}), fake.settings()) as http:
            info = (await http.get("/models/question/info")).json()
            assert info == (await http.get("/models/question")).json()
            assert (info["model_id"], info["pipeline_tag"], info["max_input_length"]) == ("question", QA, 32)
            paths = ["/models/text/health", "/models/tekst/health", "/models/tekst", "/health", "/info"]
            assert [(await http.get(path)).status_code for path in paths] == [200, 404, 404, 404, 404]
        async with fake.client(Models({"text": models[1]}, {}), fake.settings()) as http:
            assert (await http.get("/info")).json()["labels"] == ["negative", "positive"]
            assert (await http.get("/health")).json() == {"status": "ready", "model": "text"}
            http.app.state.lifecycle.stopping = True  # type: ignore[attr-defined]
            assert (await http.get("/health")).status_code == 503

    asyncio.run(story())


def test_requests_are_counted_by_their_model(models: list[Model]) -> None:
    async def conversation(http: httpx.AsyncClient) -> str:
        await http.post("/models/token", json={"inputs": "john"})
        await http.post("/models/token", content=b"{", headers={"content-type": "application/json"})
        return (await http.get("/metrics")).text

    page = fake.talk(models, conversation)
    for outcome in ("ok", "invalid"):
        line = f'sparselane_requests_total{{model="token",outcome="{outcome}",task="token-classification"}} 1.0'
        assert line in page


def test_the_document_has_bodies_with_examples_that_work(models: list[Model]) -> None:
    async def conversation(http: httpx.AsyncClient) -> None:
        document = (await http.get("/openapi.json")).json()
        operation = document["paths"]["/models/{name}"]["post"]
        schemas = operation["requestBody"]["content"]["application/json"]["schema"]["anyOf"]
        for schema, name in zip(schemas, ("question", "text", "token"), strict=True):
            kind = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
            for example in kind["examples"]:
                assert (await http.post(f"/models/{name}", json=example)).status_code == 200
        assert {"200", "400", "404", "413", "415", "422", "503"} <= set(operation["responses"])

    fake.talk(models, conversation)
