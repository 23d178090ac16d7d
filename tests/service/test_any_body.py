"""Whatever JSON arrives, the answer is 200 or a problem that names what was wrong; never a defect."""

import dataclasses
import json
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.models import Model
from service.pipeline import TASKS
from tests.service import fake
from tests.service.test_windows import TEXTS

# `json.dumps` writes lone surrogates as escapes, as a client may.
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.text(st.characters(), max_size=5)
NAMES = st.sampled_from(
    ["inputs", "model", "parameters", "question", "context", "top_k", "stride", "aggregation", "text", "text_pair"]
)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | TEXTS, inner, max_size=3), max_leaves=6
)
PAIR = st.fixed_dictionaries({"text": TEXTS | ANYTHING, "text_pair": TEXTS | ANYTHING})
INPUT = TEXTS | PAIR | st.fixed_dictionaries({"question": TEXTS | ANYTHING, "context": TEXTS | ANYTHING}) | ANYTHING
PARAMETERS = st.fixed_dictionaries(
    {},
    optional={
        "top_k": st.integers(-1, 120) | ANYTHING,
        "max_answer_tokens": st.integers(0, 130) | ANYTHING,
        "stride": st.integers(-1, 40) | ANYTHING,
        "long_inputs": st.sampled_from(["average", "refuse"]) | ANYTHING,
        "aggregation": st.sampled_from(["none", "simple", "first", "average", "max"]) | ANYTHING,
        "ignore_labels": st.lists(st.sampled_from(["O", "PER", "X"])) | ANYTHING,
        "window": st.integers(7, 40) | ANYTHING,
        "max_question_tokens": st.integers(0, 40) | ANYTHING,
        "no_answer": st.booleans() | ANYTHING,
        "align_to_words": st.booleans() | ANYTHING,
        "offset_unit": st.sampled_from(["code_point", "utf16"]) | ANYTHING,
        "function": st.sampled_from(["softmax", "sigmoid", "none"]) | ANYTHING,
        # Those of Hugging Face's clients.
        "doc_stride": st.integers(-1, 40) | ANYTHING,
        "max_answer_len": st.integers(0, 200) | ANYTHING,
        "max_seq_len": st.integers(7, 40) | ANYTHING,
        "max_question_len": st.integers(0, 40) | ANYTHING,
        "handle_impossible_answer": st.booleans() | ANYTHING,
        "scoring": st.sampled_from(["pipeline", "global"]) | ANYTHING,
        "aggregation_strategy": st.sampled_from(["none", "simple", "first", "average", "max"]) | ANYTHING,
        "function_to_apply": st.sampled_from(["softmax", "sigmoid", "none"]) | ANYTHING,
    },
)
BODIES = ANYTHING | st.fixed_dictionaries(
    {"inputs": INPUT | st.lists(INPUT, max_size=3)},
    optional={"parameters": PARAMETERS | ANYTHING, "model": st.sampled_from(["question", "text-pairs"]) | ANYTHING},
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Model]:
    made = [fake.model(tmp_path_factory.mktemp("any"), task)[0] for task in TASKS]
    pairs, _ = fake.model(tmp_path_factory.mktemp("pairs"), "text-classification", name="text-pairs")
    return [*made, dataclasses.replace(pairs, pairs=True)]


@settings(deadline=None, max_examples=15)
@given(st.lists(BODIES, min_size=5, max_size=15))
def test_no_body_is_answered_with_a_defect(models: list[Model], bodies: list[Any]) -> None:
    async def conversation(http: httpx.AsyncClient) -> None:
        headers = {"content-type": "application/json"}
        for body in bodies:
            content = json.dumps(body).encode()
            for task in TASKS:
                response = await http.post(f"/v1/{task}", content=content, headers=headers)
                assert response.status_code in (200, 400, 404, 413, 422), (body, response.text)
                if response.status_code == 200:
                    check_spans(body["inputs"], response.json()["results"])
                else:
                    assert response.json()["detail"]
            for model in models:
                response = await http.post(f"/models/{model.name}", content=content, headers=headers)
                assert response.status_code in (200, 413, 422), (body, response.text)
                assert response.status_code == 200 or response.json()["error"]

    fake.talk(models, conversation)


def check_spans(inputs: Any, results: list[list[dict[str, Any]]]) -> None:
    items = inputs if isinstance(inputs, list) else [inputs]
    for item, entries in zip(items, results, strict=True):
        for entry in entries:
            if "start" in entry:
                text = item["context"] if isinstance(item, dict) else item
                assert text[entry["start"] : entry["end"]] == entry.get("answer", entry.get("word"))
