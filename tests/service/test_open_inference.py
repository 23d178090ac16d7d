"""The Open Inference Protocol over a formula: every route, both kinds of inputs, and bodies that nobody should send."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.models import Model, Models
from service.open_inference import EXTENSIONS
from tests.service import fake
from tests.service.fake import Formula
from tests.service.test_any_body import ANYTHING

QA, CLS, NER = "question-answering", "text-classification", "token-classification"
ASKED = {"question": "who was in london", "context": "john was in paris. mary was in london."}
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Model, Formula]]:
    return {task: fake.model(tmp_path_factory.mktemp("oip"), task) for task in (QA, CLS, NER)}


def talk(models: dict[str, tuple[Model, Formula]], conversation: Any, **overrides: Any) -> Any:
    return fake.talk([model for model, _ in models.values()], conversation, **overrides)


def post(models: dict[str, tuple[Model, Formula]], name: str, body: Any, **overrides: Any) -> httpx.Response:
    async def conversation(http: httpx.AsyncClient) -> httpx.Response:
        return await http.post(f"/v2/models/{name}/infer", content=json.dumps(body), headers=JSON)

    response = talk(models, conversation, **overrides)
    assert isinstance(response, httpx.Response)
    return response


def texts(name: str, *values: str) -> dict[str, Any]:
    return {"name": name, "shape": [len(values)], "datatype": "BYTES", "data": list(values)}


def tokens(name: str, rows: Any, datatype: str = "INT64") -> dict[str, Any]:
    return {"name": name, "shape": [len(rows), len(rows[0])], "datatype": datatype, "data": rows}


def outputs(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    return {output["name"]: output for output in response.json()["outputs"]}


def test_server_and_models_describe_themselves(models: dict[str, tuple[Model, Formula]]) -> None:
    async def conversation(http: httpx.AsyncClient) -> None:
        for path in ("/v2", "/v2/"):
            assert (await http.get(path)).json()["extensions"] == list(EXTENSIONS)
        assert (await http.get("/v2/health/live")).json() == {"live": True}
        assert (await http.get("/v2/health/ready")).json() == {"ready": True}
        assert (await http.get("/v2/models")).json() == {"models": ["question", "text", "token"]}
        metadata = (await http.get("/v2/models/text")).json()
        assert (await http.get("/v2/models/text/versions/1")).json() == metadata
        assert metadata["name"] == "text"
        assert metadata["versions"] == ["1"]
        names = [tensor["name"] for tensor in metadata["inputs"]]
        assert names == ["text", "input_ids", "attention_mask", "token_type_ids"]
        assert metadata["outputs"][-1] == {"name": "logits", "datatype": "FP32", "shape": [-1, 2]}
        for path in ("/v2/models/text/ready", "/v2/models/text/versions/1/ready"):
            assert (await http.get(path)).json() == {"name": "text", "ready": True}
        for path in ("/v2/models/tekst", "/v2/models/tekst/ready", "/v2/models/text/versions/2"):
            missing = await http.get(path)
            assert (missing.status_code, missing.json()["error"]) == (404, missing.json()["detail"])

    talk(models, conversation)


def test_a_model_of_pairs_takes_both_texts(models: dict[str, tuple[Model, Formula]]) -> None:
    pairs = replace(models[CLS][0], pairs=True)
    columns = [texts("text", "john was in paris", "a good film"), texts("text_pair", "mary", "was good")]

    async def conversation(http: httpx.AsyncClient) -> None:
        described = (await http.get("/v2/models/text")).json()["inputs"]
        assert [tensor["name"] for tensor in described[:2]] == ["text", "text_pair"]
        given = (await http.post("/v2/models/text/infer", json={"inputs": columns})).json()["outputs"]
        rows = [{"text": a, "text_pair": b} for a, b in zip(*(column["data"] for column in columns), strict=True)]
        typed = (await http.post(f"/v1/{CLS}", json={"inputs": rows})).json()["results"]
        scores = next(output["data"] for output in given if output["name"] == "score")
        assert scores == pytest.approx([labels[0]["score"] for labels in typed], rel=1e-6)
        alone = await http.post("/v2/models/text/infer", json={"inputs": columns[:1]})
        assert (alone.status_code, alone.json()["errors"][0]["pointer"]) == (422, "/inputs/0/data/0")

    fake.talk([pairs], conversation)


def test_a_model_that_failed_is_listed_and_not_ready(models: dict[str, tuple[Model, Formula]]) -> None:
    model = models[CLS][0]

    async def story() -> None:
        refused = {"new": "GoldenError: y", model.name: "the former version goes on"}
        served = Models({model.name: model}, {"qa": "ChecksumError: x"}, refused)
        async with fake.client(served, fake.settings()) as http:
            assert (await http.post("/v2/repository/index")).json() == [
                {"name": "new", "version": "1", "state": "UNAVAILABLE", "reason": "GoldenError: y"},
                {"name": "qa", "version": "1", "state": "UNAVAILABLE", "reason": "ChecksumError: x"},
                {"name": "text", "version": "1", "state": "READY", "reason": ""},
            ]
            for path in ("/v2/health/ready", "/v2/models/qa/ready"):
                response = await http.get(path)
                assert (response.status_code, response.json()["error"]) == (503, "qa: ChecksumError: x")
            response = await http.get("/v2/models/new/ready")
            assert (response.status_code, response.json()["error"]) == (503, "new: GoldenError: y")
            assert (await http.get("/v2/models/nobody/ready")).status_code == 404
            assert (await http.get("/v2/models/text/ready")).status_code == 200
            assert (await http.get("/v2/health/live")).status_code == 200

    asyncio.run(story())


def test_texts_give_what_the_typed_api_gives(models: dict[str, tuple[Model, Formula]]) -> None:
    bodies = {
        QA: ([ASKED, {**ASKED, "question": "who"}], {"top_k": 2}),
        CLS: (["good film", "bad film " * 40], {"top_k": 2}),
        NER: (["john was in london", "", "mary"], {"aggregation": "max"}),
    }

    async def conversation(http: httpx.AsyncClient) -> None:
        for task, (items, parameters) in bodies.items():
            typed = (await http.post(f"/v1/{task}", json={"inputs": items, "parameters": parameters})).json()
            names = ["question", "context"] if task == QA else ["text"]
            columns = [[item[name] if task == QA else item for item in items] for name in names]
            tensors = [texts(name, *column) for name, column in zip(names, columns, strict=True)]
            body = {"id": "é42", "inputs": tensors, "parameters": parameters}
            response = await http.post(f"/v2/models/{task.split('-')[0]}/versions/1/infer", json=body)
            found = outputs(response)
            assert response.json()["id"] == "é42"
            assert response.json()["parameters"] == typed["usage"]
            assert [json.loads(row) for row in found["output"]["data"]] == typed["results"]
            entries = [entry for row in typed["results"] for entry in (row if task == NER else row[:1])]
            for name in found.keys() - {"output", "row"}:
                expected = [entry[name] for entry in entries]
                assert found[name]["data"] == (np.float32(expected).tolist() if name == "score" else expected)
                assert found[name]["shape"] == [len(expected)]
            assert "server-timing" in response.headers

    talk(models, conversation)


def test_entities_say_which_text_they_are_in(models: dict[str, tuple[Model, Formula]]) -> None:
    body = {"inputs": [texts("text", "", "john was in london in the film", "mary")]}
    found = outputs(post(models, "token", body))
    words = [len(json.loads(row)) for row in found["output"]["data"]]
    assert found["row"]["data"] == [row for row, count in enumerate(words) for _ in range(count)] != []


def test_tokens_give_logits(models: dict[str, tuple[Model, Formula]]) -> None:
    ids, mask = [[2, 7, 9, 3], [2, 8, 3, 0]], [[1, 1, 1, 1], [1, 1, 1, 0]]
    body = {"inputs": [tokens("attention_mask", mask, "INT32"), tokens("input_ids", ids)]}

    def expected(labels: int, row: list[int]) -> Any:
        return np.sin(np.array(row)[:, None] * (np.arange(labels) + 1)).astype(np.float32)

    logits = outputs(post(models, "token", body))["logits"]
    assert logits["shape"] == [2, 4, 7]
    values = np.array(logits["data"], np.float32).reshape(2, 4, 7)
    assert np.array_equal(values[0], expected(7, ids[0]))
    assert np.array_equal(values[1], np.vstack([expected(7, ids[1][:3]), np.zeros((1, 7))]))
    found = outputs(post(models, "question", {**body, "outputs": [{"name": "end_logits"}, {"name": "logits"}]}))
    assert list(found) == ["end_logits", "logits"]
    both = np.array(found["logits"]["data"]).reshape(2, 4, 2)
    assert found["end_logits"]["data"] == both[..., 1].ravel().tolist()
    response = post(models, "text", body)
    assert outputs(response)["logits"]["shape"] == [2, 2]
    assert response.json()["parameters"] == {"tokens": 7, "windows": 2}


def test_tokens_share_batches_with_texts_and_are_counted(models: dict[str, tuple[Model, Formula]]) -> None:
    formula = models[CLS][1]

    async def conversation(http: httpx.AsyncClient) -> str:
        def ask(row: list[int]) -> Any:
            body = {"inputs": [tokens("input_ids", [row])]}
            return asyncio.ensure_future(http.post("/v2/models/text/infer", json=body))

        formula.gate.clear()
        formula.started.clear()
        asked = [ask([2, 3])]
        await fake.wait_until(formula.started.is_set)
        formula.batches.clear()
        asked += [ask([2, 9, 3]), asyncio.ensure_future(http.post(f"/v1/{CLS}", json={"inputs": "good film"}))]
        async with asyncio.timeout(30):
            while "sparselane_queue_tokens 9.0" not in (await http.get("/metrics")).text:
                await asyncio.sleep(0.001)
        formula.gate.set()
        assert [response.status_code for response in await asyncio.gather(*asked)] == [200] * 3
        refused = await http.post("/v2/models/text/infer", json={"inputs": [tokens("input_ids", [[2] * 60] * 2)]})
        assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (413, "/inputs/0/shape")
        return (await http.get("/metrics")).text

    page = talk(models, conversation, max_queue_tokens=100)
    assert sorted(formula.batches[0]) == [3, 4]
    assert f'sparselane_requests_total{{model="text",outcome="ok",task="{CLS}"}} 3.0' in page
    assert f'sparselane_requests_total{{model="text",outcome="invalid",task="{CLS}"}} 1.0' in page


def test_binary_outputs_only_where_asked_for(models: dict[str, tuple[Model, Formula]]) -> None:
    def sizes(**more: Any) -> dict[str, bool]:
        async def conversation(http: httpx.AsyncClient) -> httpx.Response:
            body = {"inputs": [texts("text", "good film")], **more}
            return await http.post("/v2/models/text/infer", content=json.dumps(body).encode())

        response = talk(models, conversation)
        assert response.status_code == 200, response.text
        length = int(response.headers.get("inference-header-content-length", len(response.content)))
        assert response.headers["content-type"].endswith("json" if length == len(response.content) else "octet-stream")
        found = json.loads(response.content[:length])["outputs"]
        behind = sum(output.get("parameters", {}).get("binary_data_size", 0) for output in found)
        assert behind == len(response.content) - length
        return {output["name"]: "data" not in output for output in found}

    everything = {"binary_data_output": True}
    label, score = {"name": "label"}, {"name": "score"}
    assert sizes() == {"output": False, "label": False, "score": False}
    assert sizes(parameters=everything) == {"output": True, "label": True, "score": True}
    assert sizes(outputs=[{**label, "parameters": {"binary_data": True}}, score]) == {"label": True, "score": False}
    asked = [{**label, "parameters": {"binary_data": False}}, score]
    assert sizes(outputs=asked, parameters=everything) == {"label": False, "score": True}
    assert sizes(outputs=[]) == sizes()


# Model, body, status, pointer, something of the message.
GOOD = {"inputs": [texts("text", "good film")]}
IDS = tokens("input_ids", [[2, 3]])
BAD: list[tuple[str, Any, int, str, str]] = [
    ("tekst", GOOD, 404, "", "did you mean 'text'?"),
    ("text", [GOOD], 422, "", "JSON object"),
    ("text", {}, 422, "/inputs", "required"),
    ("text", {"inputs": []}, 422, "/inputs", "'text' is missing"),
    ("text", {"inputs": [1]}, 422, "/inputs/0", "JSON object"),
    ("text", {**GOOD, "input": 1}, 422, "/input", "did you mean 'inputs'?"),
    ("text", {**GOOD, "id": 42}, 422, "/id", "string"),
    ("text", {**GOOD, "id": "\ud800"}, 422, "/id", "surrogate"),
    ("text", {"inputs": [texts("txt", "a")]}, 422, "/inputs/0/name", "did you mean 'text'?"),
    ("text", {"inputs": [texts("text", "a")] * 2}, 422, "/inputs/1/name", "another tensor of that name"),
    ("text", {"inputs": [IDS, texts("text", "a")]}, 422, "/inputs/1/name", "beside token ids"),
    ("text", {"inputs": [tokens("attention_mask", [[1]])]}, 422, "/inputs", "'input_ids' is missing"),
    ("text", {"inputs": [texts("text", "a", " ")]}, 422, "/inputs/0/data/1", "no words"),
    ("text", {"inputs": [texts("text", "a", "\ud800")]}, 422, "/inputs/0/data/1", "surrogate"),
    ("text", {"inputs": [texts("text", "a"), texts("text_pair", "b")]}, 422, "/inputs/0/data/0", ""),
    ("text", {"inputs": [{**texts("text", "a"), "shape": [-1]}]}, 422, "/inputs/0/shape/0", "greater than"),
    ("text", {"inputs": [{**texts("text", "a"), "shape": [2**64]}]}, 422, "/inputs/0/shape/0", "less than"),
    ("text", {"inputs": [{**texts("text", "a"), "shape": [1.5]}]}, 422, "/inputs/0/shape/0", "integer"),
    ("text", {"inputs": [texts("text", *"abcde")]}, 413, "/inputs/0/shape", "5 inputs"),
    ("text", {"inputs": [texts("text", "a" * 101)]}, 413, "/inputs/0/data/0", "101 characters"),
    ("text", {"inputs": [tokens("input_ids", [[2, 3]] * 5)]}, 413, "/inputs/0/shape", "5 inputs"),
    # Nothing is read of too many, nor of more tensors than any model has.
    ("text", {"inputs": [texts("text", *"abcd", 7)]}, 413, "/inputs/0/shape", "5 inputs"),
    ("text", {"inputs": [{**IDS, "shape": [5, 2]}]}, 413, "/inputs/0/shape", "5 inputs"),
    (
        "text",
        {"inputs": [IDS, {**tokens("attention_mask", [["x"]]), "shape": [5, 1]}]},
        413,
        "/inputs/1/shape",
        "5 inputs",
    ),
    ("text", {"inputs": [{**IDS, "shape": []}]}, 422, "/inputs/0/shape", "[n, length]"),
    ("text", {"inputs": [texts("text", "a")] * 17}, 422, "/inputs", "at most 16"),
    ("text", {**GOOD, "outputs": [{"name": "label"}] * 17}, 422, "/outputs", "at most 16"),
    ("text", {**GOOD, "outputs": [{"name": "lable"}]}, 422, "/outputs/0/name", "did you mean 'label'?"),
    ("text", {**GOOD, "outputs": [{"name": "logits"}]}, 422, "/outputs/0/name", "no such output"),
    ("text", {**GOOD, "outputs": [{"name": "label"}] * 2}, 422, "/outputs/1/name", "twice"),
    (
        "text",
        {**GOOD, "outputs": [{"name": "label", "parameters": {"binary_data": 1}}]},
        422,
        "/outputs/0/parameters/binary_data",
        "true or false",
    ),
    (
        "text",
        {**GOOD, "outputs": [{"name": "label", "parameters": {"classification": 2}}]},
        422,
        "/outputs/0/parameters/classification",
        "top_k",
    ),
    (
        "text",
        {"inputs": [{**GOOD["inputs"][0], "parameters": {"shared_memory_region": "x"}}]},
        422,
        "/inputs/0/parameters/shared_memory_region",
        "no such parameter",
    ),
    (
        "text",
        {"inputs": [{**GOOD["inputs"][0], "parameters": {"\ud800/~": 1}}]},
        422,
        "/inputs/0/parameters/\\ud800~1~0",
        "no such parameter",
    ),
    ("text", {**GOOD, "parameters": {"timeout": 5}}, 422, "/parameters/timeout", "X-Request-Timeout-Ms"),
    ("text", {**GOOD, "parameters": {"topk": 5}}, 422, "/parameters/topk", "did you mean 'top_k'?"),
    ("text", {**GOOD, "parameters": {"binary_data_output": 1}}, 422, "/parameters/binary_data_output", "true or false"),
    ("text", {"inputs": [IDS], "parameters": {"top_k": 5}}, 422, "/parameters/top_k", "no such field"),
    ("question", {"inputs": [texts("question", "a")]}, 422, "/inputs", "'context' is missing"),
    (
        "question",
        {"inputs": [texts("question", "a", "b"), texts("context", "a")]},
        422,
        "/inputs/1/shape",
        "as many texts as 'question', 2",
    ),
    (
        "question",
        {"inputs": [texts("context", "a", "b"), texts("question", "a", "a " * 20)]},
        422,
        "/inputs/1/data/1",
        "shorten it",
    ),
    (
        "question",
        {"inputs": [texts("context", "a", ""), texts("question", "a", "b")]},
        422,
        "/inputs/0/data/1",
        "words",
    ),
]


@pytest.mark.parametrize(("name", "body", "status", "pointer", "message"), BAD)
def test_bad_requests_are_named_with_pointers(
    models: dict[str, tuple[Model, Formula]], name: str, body: Any, status: int, pointer: str, message: str
) -> None:
    response = post(models, name, body, max_text_chars=100, max_inputs=4)
    problem = response.json()
    assert response.status_code == status, problem
    assert problem["errors"][0]["pointer"] == pointer
    assert message in problem["error"]
    assert problem["error"] == problem["detail"]


def test_malformed_bodies_and_headers(models: dict[str, tuple[Model, Formula]]) -> None:
    huge = b'{"inputs": [' + b"9" * 5000 + b"]}"

    async def conversation(http: httpx.AsyncClient) -> None:
        for content, message in (
            (b"", "the body is empty"),
            (b"{", "at character 1"),
            (b"\xff\xfe", ""),
            (b"[" * 100_000, ""),
            (huge, "digits"),
        ):
            for path in ("/v2/models/text/infer", "/predict"):
                response = await http.post(path, content=content, headers=JSON)
                assert (response.status_code, response.json()["errors"][0]["pointer"]) == (400, "")
                assert message in response.json()["error"]
        headers = {"inference-header-content-length": "1000"}
        response = await http.post("/v2/models/text/infer", content=b"{}", headers=headers)
        assert response.status_code == 400
        assert "Inference-Header-Content-Length" in response.json()["error"]

    talk(models, conversation)


def test_the_document_describes_the_bodies(models: dict[str, tuple[Model, Formula]]) -> None:
    async def conversation(http: httpx.AsyncClient) -> Any:
        return (await http.get("/openapi.json")).json()

    document = talk(models, conversation)
    infer = document["paths"]["/v2/models/{name}/infer"]["post"]
    kinds = infer["requestBody"]["content"]["application/json"]["schema"]["anyOf"]
    assert [kind["title"] for kind in kinds] == ["InferRequest", "Question", "Sequences", "Inputs"]
    assert kinds[0]["properties"]["inputs"]["items"]["required"] == ["name", "shape", "datatype"]
    assert set(infer["responses"]["200"]["content"]) == {"application/json", "application/octet-stream"}
    assert {"400", "404", "413", "422", "503"} <= set(infer["responses"])


SIZES = st.integers(-2, 5) | st.sampled_from([2**31, 2**63, 2**70])
DATA = st.lists(
    st.integers(-1, 70) | st.text(max_size=3) | st.lists(st.integers(0, 9), max_size=3) | ANYTHING, max_size=5
)
TENSORS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["text", "question", "context", "input_ids", "attention_mask", "token_type_ids", "x"]),
        "shape": st.lists(SIZES | ANYTHING, max_size=3) | st.tuples(st.integers(0, 5), st.integers(0, 3)),
        "datatype": st.sampled_from(["BYTES", "INT64", "INT32", "FP32", ""]),
    },
    optional={
        "data": DATA | ANYTHING,
        "parameters": st.fixed_dictionaries({"binary_data_size": SIZES | st.integers(0, 40)}) | ANYTHING,
    },
)
REQUESTS = st.fixed_dictionaries(
    {"inputs": st.lists(TENSORS, max_size=3) | ANYTHING},
    optional={
        "id": ANYTHING,
        "parameters": ANYTHING | st.fixed_dictionaries({"binary_data_output": st.booleans() | ANYTHING}),
        "outputs": st.lists(st.fixed_dictionaries({"name": st.sampled_from(["output", "logits"]) | st.text()}))
        | ANYTHING,
    },
)


@st.composite
def nearly_right(draw: st.DrawFn) -> tuple[str, Any, bytes]:
    """Draw a model, a request that it would answer, in binary, and then perhaps one number or some bytes off."""
    name = draw(st.sampled_from(["question", "text", "token"]))
    count, length = draw(st.integers(0, 3)), draw(st.integers(1, 4))
    if draw(st.booleans()):
        kind = draw(st.sampled_from(["INT64", "INT32"]))
        names, shape = draw(st.sampled_from([["input_ids"], ["input_ids", "attention_mask"]])), [count, length]
        parts = [np.ones(shape, {"INT64": "<i8", "INT32": "<i4"}[kind]).tobytes() for _ in names]
    else:
        kind, names, shape = "BYTES", ["question", "context"] if name == "question" else ["text"], [count]
        words = draw(st.lists(st.sampled_from(["who", "é", "john was in london"]), min_size=count, max_size=count))
        parts = [b"".join(len(word.encode()).to_bytes(4, "little") + word.encode() for word in words) for _ in names]
    inputs: list[dict[str, Any]] = [
        {"name": n, "shape": shape.copy(), "datatype": kind, "parameters": {"binary_data_size": len(part)}}
        for n, part in zip(names, parts, strict=True)
    ]
    wrong = draw(st.sampled_from(["nothing", "shape", "size", "bytes", "cut"]))
    if wrong == "shape":
        inputs[0]["shape"][-1] += draw(st.integers(-2, 2))
    if wrong == "size":
        inputs[-1]["parameters"]["binary_data_size"] += draw(st.integers(-9, 9))
    binary = b"".join(parts)
    if wrong == "bytes" and binary:
        place = draw(st.integers(0, len(binary) - 1))
        binary = binary[:place] + draw(st.binary(min_size=1, max_size=1)) + binary[place + 1 :]
    if wrong == "cut":
        binary = binary[: draw(st.integers(0, len(binary)))]
    return name, {"inputs": inputs}, binary


@st.composite
def anything(draw: st.DrawFn) -> tuple[str, Any, bytes]:
    return draw(st.sampled_from(["question", "text", "token"])), draw(REQUESTS), draw(st.binary(max_size=40))


@settings(deadline=None, max_examples=15)
@given(st.lists(nearly_right() | anything(), min_size=10, max_size=20))
def test_no_request_is_a_defect_and_every_refusal_points_at_the_body(
    models: dict[str, tuple[Model, Formula]], requests: list[tuple[str, Any, bytes]]
) -> None:
    async def conversation(http: httpx.AsyncClient) -> None:
        for name, body, binary in requests:
            head = json.dumps(body).encode()
            headers = {"inference-header-content-length": str(len(head))}
            response = await http.post(f"/v2/models/{name}/infer", content=head + binary, headers=headers)
            assert response.status_code in (200, 400, 413, 422), (body, response.text)
            if response.status_code != 200:
                problem = response.json()
                assert problem["error"]
                assert all(points_into(body, error["pointer"]) for error in problem["errors"]), (body, problem)

    talk(models, conversation)


def points_into(body: Any, pointer: str) -> bool:
    """Say whether a pointer leads to a value, or to a member or element that is missing in one that is there."""
    parts = pointer.split("/")[1:]
    for place, part in enumerate(parts):
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(body, dict) and name in body:
            body = body[name]
        elif isinstance(body, list) and name.isdecimal() and int(name) < len(body):
            body = body[int(name)]
        else:
            # An element of binary data, an escaped surrogate, or what should be there.
            return place >= len(parts) - 2
    return True
