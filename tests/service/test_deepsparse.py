"""DeepSparse's bodies: its schema in the answers, ours in what they say, and errors at the places of its fields."""

import json
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.deepsparse import is_deepsparse, tokens
from service.models import Model
from service.schemas import TokenClassificationParameters
from tests.service import fake
from tests.service.fake import Formula
from tests.service.test_any_body import ANYTHING
from tests.service.test_open_inference import points_into
from tests.service.test_windows import TEXTS

QA, CLS, NER = "question-answering", "text-classification", "token-classification"
ASKED = {"question": "who was in london", "context": "john was in paris. mary was in london."}
SENTENCE = "john was in the london of films and mary"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Model, Formula]]:
    return {task: fake.model(tmp_path_factory.mktemp("deepsparse"), task) for task in (QA, CLS, NER)}


def talk(models: dict[str, tuple[Model, Formula]], conversation: Any, **overrides: Any) -> Any:
    return fake.talk([model for model, _ in models.values()], conversation, **overrides)


def ask(models: dict[str, tuple[Model, Formula]], path: str, body: Any, **overrides: Any) -> tuple[int, Any]:
    async def conversation(http: httpx.AsyncClient) -> httpx.Response:
        content = json.dumps(body).encode()
        return await http.post(path, content=content, headers={"content-type": "application/json"})

    response = talk(models, conversation, **overrides)
    return response.status_code, response.json()


def test_bodies_are_told_apart_by_their_shape() -> None:
    for body in ({"question": 1}, {"context": "a"}, {"sequences": []}, {"inputs": "a"}, {"inputs": ["a", {}]}):
        assert is_deepsparse(body)
    for body in ({}, {"inputs": []}, {"inputs": [{}]}, {"inputs": {}}, [], None, "a", {"inputs": [1]}):
        assert not is_deepsparse(body)


@pytest.mark.parametrize("path", ["/v2/models/question/infer", "/predict", "/predict/question"])
def test_a_question_has_one_answer(models: dict[str, tuple[Model, Formula]], path: str) -> None:
    status, answer = ask(models, path, ASKED)
    typed = ask(models, f"/v1/{QA}", {"inputs": ASKED})[1]["results"][0][0]
    assert (status, answer) == (200, typed)
    assert list(answer) == ["score", "answer", "start", "end"]
    for sample in ("7", None):  # DeepSparse's own schema has it, and no answer did
        assert ask(models, path, {**ASKED, "id": sample}) == (200, answer)


@pytest.mark.parametrize("path", ["/v2/models/text/infer", "/predict", "/predict/text"])
def test_sequences_have_labels_and_scores(models: dict[str, tuple[Model, Formula]], path: str) -> None:
    two = ["good film", "bad"]
    typed = ask(models, f"/v1/{CLS}", {"inputs": two, "parameters": {"top_k": 1}})[1]["results"]
    expected = {"labels": [best["label"] for (best,) in typed], "scores": [best["score"] for (best,) in typed]}
    assert ask(models, path, {"sequences": two}) == (200, expected)
    assert ask(models, path, {"sequences": [[text] for text in two]}) == (200, expected)
    first = {name: values[:1] for name, values in expected.items()}
    assert ask(models, path, {"sequences": two[0]}) == (200, first)
    assert ask(models, path, {"sequences": []}) == (200, {"labels": [], "scores": []})


@pytest.mark.parametrize("path", ["/v2/models/token/infer", "/predict", "/predict/token"])
def test_inputs_have_token_predictions(models: dict[str, tuple[Model, Formula]], path: str) -> None:
    status, body = ask(models, path, {"inputs": [SENTENCE, ""]})
    assert status == 200
    found, nothing = body["predictions"]
    assert nothing == []
    assert found
    tokenizer = models[NER][0].windows.tokenizer(SENTENCE)
    for token in found:
        assert list(token) == ["entity", "score", "word", "start", "end", "index", "is_grouped"]
        assert token["entity"][:2] in ("B-", "I-")
        assert token["word"].removeprefix("##") == SENTENCE[token["start"] : token["end"]]
        assert tokenizer.spans[token["index"] - 1].tolist() == [token["start"], token["end"]]
        assert token["is_grouped"] is False
    assert ask(models, path, {"inputs": SENTENCE}) == (200, {"predictions": [found]})


def test_split_words_have_one_prediction_each_with_offsets_of_their_own(
    models: dict[str, tuple[Model, Formula]],
) -> None:
    path, words = "/v2/models/token/infer", [*SENTENCE.split(), " the", "john-mary"]
    (found,) = ask(models, path, {"inputs": words, "is_split_into_words": True})[1]["predictions"]
    (joined,) = ask(models, path, {"inputs": " ".join(words)})[1]["predictions"]
    starts = [sum(len(word) + 1 for word in words[:place]) for place in range(len(words))]
    firsts = [start + len(word) - len(word.lstrip()) for start, word in zip(starts, words, strict=True)]
    expected = [token for token in joined if token["start"] in firsts]
    assert [token["word"] for token in found] == [token["word"] for token in expected]
    assert "films" in words
    for token, whole in zip(found, expected, strict=True):
        word = firsts.index(whole["start"])
        assert words[word][token["start"] : token["end"]] == token["word"]
        assert token["index"] == whole["index"]


def test_every_token_is_outside_or_answered(models: dict[str, tuple[Model, Formula]]) -> None:
    model = models[NER][0]
    encoded = model.windows.single(model.windows.tokenizer("john was"))
    logits = np.full((4, len(model.labels)), -9, np.float32)
    logits[:, 0] = 9
    assert tokens(model, "john was", encoded, [logits], TokenClassificationParameters()) == []
    logits[2, 1:3] = (20, 10)
    (token,) = tokens(model, "john was", encoded, [logits], TokenClassificationParameters())
    assert (token.entity, token.word, token.start, token.end, token.index) == ("B-PER", "was", 5, 8, 2)
    assert token.score == pytest.approx(1 / (1 + np.exp(-10.0) + np.exp(-11.0)), rel=1e-6)


# Path, body, status, pointer, something of the message.
INFER = "/v2/models/{}/infer"
BAD: list[tuple[str, Any, int, str, str]] = [
    (INFER.format("question"), {"question": "a"}, 422, "/context", "required"),
    (INFER.format("question"), {**ASKED, "context": 1}, 422, "/context", "string"),
    (INFER.format("question"), {**ASKED, "question": " "}, 422, "/question", "no words"),
    (INFER.format("question"), {**ASKED, "top_k": 1}, 422, "/top_k", "no such field"),
    (INFER.format("question"), {**ASKED, "id": 1}, 422, "/id", "string"),
    (INFER.format("question"), {**ASKED, "context": "a" * 101}, 413, "/context", "101 characters"),
    (INFER.format("question"), {"sequences": "a"}, 422, "/sequences", "known: question, context"),
    (INFER.format("text"), {"sequences": " "}, 422, "/sequences", "no words"),
    (INFER.format("text"), {"sequences": ["a", " "]}, 422, "/sequences/1", "no words"),
    (INFER.format("text"), {"sequences": ["a", []]}, 422, "/sequences/1", "one text, or two"),
    (INFER.format("text"), {"sequences": ["a", ["b", 1]]}, 422, "/sequences/1/1", "string"),
    (INFER.format("text"), {"sequences": 1}, 422, "/sequences", "string"),
    (INFER.format("text"), {"sequences": [["a"], []]}, 422, "/sequences/1", "one text, or two"),
    (INFER.format("text"), {"sequences": [["a", "b"]]}, 422, "/sequences/0", "single texts"),
    (INFER.format("text"), {"sequences": ["a"] * 5}, 413, "/sequences", "5 inputs"),
    (INFER.format("text"), {"sequences": [7] * 5}, 413, "/sequences", "5 inputs"),
    (INFER.format("token"), {"inputs": ["a"] * 5}, 413, "/inputs", "5 inputs"),
    ("/predict/token", {"inputs": [7] * 5, "is_split_into_words": False}, 413, "/inputs", "5 inputs"),
    ("/predict/token", {"inputs": [*"abcde", 7], "is_split_into_words": True}, 422, "/inputs/5", "string"),
    (INFER.format("token"), {"inputs": ["a", "b" * 101]}, 413, "/inputs/1", "101 characters"),
    (INFER.format("token"), {"inputs": ["b" * 101], "is_split_into_words": True}, 413, "/inputs", "101 characters"),
    (INFER.format("tokn"), {"inputs": "a"}, 404, "", "did you mean 'token'?"),
    ("/predict/tokn", {"inputs": "a"}, 404, "/model", "did you mean 'token'?"),
    ("/predict", {"inputs": [{}]}, 422, "", "none of"),
    ("/predict", [], 422, "", "none of"),
]


@pytest.mark.parametrize(("path", "body", "status", "pointer", "message"), BAD)
def test_errors_are_at_the_fields_that_were_sent(
    models: dict[str, tuple[Model, Formula]], path: str, body: Any, status: int, pointer: str, message: str
) -> None:
    code, problem = ask(models, path, body, max_text_chars=100, max_inputs=4)
    assert code == status, problem
    assert problem["errors"][0]["pointer"] == pointer, problem
    assert message in problem["detail"]


def test_predict_is_counted_as_its_task(models: dict[str, tuple[Model, Formula]]) -> None:
    async def conversation(http: httpx.AsyncClient) -> str:
        assert (await http.post("/predict", json=ASKED)).status_code == 200
        assert (await http.post("/predict", content=b"{}", headers={"content-type": "text/plain"})).status_code == 415
        return (await http.get("/metrics")).text

    assert f'sparselane_requests_total{{model="question",outcome="ok",task="{QA}"}} 1.0' in talk(models, conversation)


BODIES = st.one_of(
    st.fixed_dictionaries({"question": TEXTS | ANYTHING, "context": TEXTS | ANYTHING}),
    st.fixed_dictionaries({"sequences": st.lists(TEXTS | st.lists(TEXTS, max_size=3), max_size=3) | TEXTS | ANYTHING}),
    st.fixed_dictionaries(
        {"inputs": st.lists(TEXTS, max_size=4) | TEXTS | ANYTHING},
        optional={"is_split_into_words": st.booleans() | ANYTHING},
    ),
)


@settings(deadline=None, max_examples=10)
@given(st.lists(BODIES, min_size=10, max_size=20))
def test_no_body_is_a_defect(models: dict[str, tuple[Model, Formula]], bodies: list[Any]) -> None:
    async def conversation(http: httpx.AsyncClient) -> None:
        for body in bodies:
            content = json.dumps(body).encode()
            response = await http.post("/predict", content=content, headers={"content-type": "application/json"})
            assert response.status_code in (200, 422), (body, response.text)
            if response.status_code == 422:
                assert all(points_into(body, error["pointer"]) for error in response.json()["errors"])

    talk(models, conversation)
