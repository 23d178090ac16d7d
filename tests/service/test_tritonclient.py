"""Triton's own client, sync and async, against the real process: texts and tokens, binary and JSON, errors."""

import asyncio
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from service import question_answering, token_classification
from service.loading import load_model
from service.models import Model
from service.schemas import QuestionAnsweringParameters, QuestionInput, TokenClassificationParameters
from tests.service import artifacts
from tests.service.artifacts import CLS, NER, QA
from tests.service.test_server import Process, running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifacts.write_all(tmp_path_factory.mktemp("triton"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Process]:
    with running(folder, SPARSELANE_NOTICE_SECONDS="0") as process:
        yield process
        assert process.stop() == 0


@pytest.fixture
def client(server: Process) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as made:
        yield made


@pytest.fixture(scope="module")
def models(folder: Path) -> dict[str, Model]:
    return {task: load_model(folder / name, threads=1) for task, name in artifacts.NAMES.items()}


def texts(name: str, values: list[str], binary: bool = True) -> triton.InferInput:
    array = np.array(values, np.object_)
    return triton.InferInput(name, [len(values)], "BYTES").set_data_from_numpy(array, binary_data=binary)


def numbers(name: str, rows: Any, binary: bool = True, datatype: type = np.int64) -> triton.InferInput:
    array = np.array(rows, datatype)
    kind = {np.int64: "INT64", np.int32: "INT32"}[datatype]
    return triton.InferInput(name, list(array.shape), kind).set_data_from_numpy(array, binary_data=binary)


def typed(server: Process, task: str, inputs: Any) -> list[Any]:
    status, body = server.ask("POST", f"/v1/{task}", {"inputs": inputs})
    assert status == 200
    return list(body["results"])


def test_health_metadata_and_index(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("qa")
    assert client.is_model_ready("qa", "1")
    assert not client.is_model_ready("q")
    assert not client.is_model_ready("qa", "2")
    assert client.get_server_metadata()["name"] == "sparselane"
    assert [model["name"] for model in client.get_model_repository_index()] == ["ner", "qa", "sentiment"]
    assert client.get_model_metadata("sentiment", "1")["outputs"][-1]["name"] == "logits"


def test_the_configuration_names_the_tensors_of_the_metadata(client: triton.InferenceServerClient) -> None:
    types = {"BYTES": "TYPE_STRING", "FP32": "TYPE_FP32", "INT64": "TYPE_INT64"}
    for name in ("ner", "qa", "sentiment"):
        config, metadata = client.get_model_config(name), client.get_model_metadata(name)
        assert (config["name"], config["platform"], config["max_batch_size"]) == (name, metadata["platform"], 0)
        for configured, described in (("input", "inputs"), ("output", "outputs")):
            assert [(one["name"], one["data_type"], one["dims"]) for one in config[configured]] == [
                (one["name"], types[one["datatype"]], one["shape"]) for one in metadata[described]
            ]
    assert client.get_model_config("qa", "1") == client.get_model_config("qa")
    assert "model_configuration" in client.get_server_metadata()["extensions"]
    with pytest.raises(InferenceServerException, match="no such model"):
        client.get_model_config("q")


@pytest.mark.parametrize("binary", [True, False])
def test_texts_give_the_typed_answers(client: triton.InferenceServerClient, server: Process, binary: bool) -> None:
    questions = [artifacts.INPUTS[QA], {"question": "who?", "context": "é 😀 mary in london"}]
    columns = [texts(name, [row[name] for row in questions], binary) for name in ("context", "question")]
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("answer", "score", "start", "end")]
    result = client.infer("qa", columns, outputs=wanted, request_id="7")
    assert result.get_response()["id"] == "7"
    for row, (best,) in enumerate(typed(server, QA, questions)):
        answer = result.as_numpy("answer")[row]
        assert (answer.decode() if binary else answer) == best["answer"]
        assert (result.as_numpy("start")[row], result.as_numpy("end")[row]) == (best["start"], best["end"])
        assert result.as_numpy("score")[row] == np.float32(best["score"])


def test_all_outputs_come_in_binary_where_none_is_named(client: triton.InferenceServerClient, server: Process) -> None:
    sentences = ["john and mary was in london", "é", "paris"]
    result = client.infer("ner", [texts("text", sentences)], parameters={"aggregation": "first"})
    rows = [json.loads(row) for row in result.as_numpy("output")]
    assert rows == typed(server, NER, sentences)
    flat = [(number, entity) for number, row in enumerate(rows) for entity in row]
    assert result.as_numpy("row").tolist() == [number for number, _ in flat]
    assert [word.decode() for word in result.as_numpy("word")] == [entity["word"] for _, entity in flat]
    assert all("binary_data_size" in output["parameters"] for output in result.get_response()["outputs"])


def as_tokens(model: Model, *parts: str) -> tuple[list[int], list[int]]:
    """Tokenize as a caller would: [CLS] first [SEP], and second [SEP] with types 1."""
    tokenizer = model.windows.tokenizer
    ids, types = [tokenizer.cls], [0]
    for segment, part in enumerate(parts):
        found = [*tokenizer(part).ids.tolist(), tokenizer.sep]
        ids, types = ids + found, types + [segment] * len(found)
    return ids, types


def padded(rows: list[list[int]], length: int) -> list[list[int]]:
    return [row + [0] * (length - len(row)) for row in rows]


@pytest.mark.parametrize(("binary", "datatype"), [(True, np.int64), (True, np.int32), (False, np.int64)])
def test_logits_of_raw_tokens_lead_to_the_typed_answers(
    client: triton.InferenceServerClient, server: Process, models: dict[str, Model], binary: bool, datatype: type
) -> None:
    def logits(name: str, rows: list[tuple[list[int], list[int]]]) -> Any:
        length = max(len(ids) for ids, _ in rows) + 2
        given: Mapping[str, Any] = {
            "input_ids": padded([ids for ids, _ in rows], length),
            "attention_mask": padded([[1] * len(ids) for ids, _ in rows], length),
            "token_type_ids": padded([types for _, types in rows], length),
        }
        inputs = [numbers(key, value, binary, datatype) for key, value in given.items()]
        wanted = [triton.InferRequestedOutput("logits", binary_data=binary)]
        return client.infer(name, inputs, outputs=wanted).as_numpy("logits")

    sentences = ["a good film", "the film was bad and mary was in london"]
    found = logits("sentiment", [as_tokens(models[CLS], text) for text in sentences])
    for row, entries in zip(found.astype(np.float64), typed(server, CLS, sentences), strict=True):
        scores = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        assert {entry["label"]: entry["score"] for entry in entries} == dict(
            zip(models[CLS].labels, scores.tolist(), strict=True)
        )

    asked = artifacts.INPUTS[QA]
    model, item = models[QA], QuestionInput(**asked)
    (values,) = logits("qa", [as_tokens(model, item.question, item.context)])
    chosen = QuestionAnsweringParameters()
    encoded = question_answering.encode(model, item, chosen, "")
    (best,) = question_answering.decode(model, item, encoded, [values[: len(encoded.windows[0].ids)]], chosen)
    assert best.model_dump() == typed(server, QA, [asked])[0][0]

    text, model = artifacts.INPUTS[NER], models[NER]
    (values,) = logits("ner", [as_tokens(model, text)])
    options = TokenClassificationParameters()
    encoded = token_classification.encode(model, text, options, "")
    entities = token_classification.decode(model, text, encoded, [values[: len(encoded.windows[0].ids)]], options)
    assert [entity.model_dump() for entity in entities] == typed(server, NER, [text])[0]


def test_requests_at_once_and_async(server: Process) -> None:
    sentences = [f"film {'good ' * count}" for count in range(1, 13)]
    expected = typed(server, CLS, sentences)
    # A connection each: with fewer the client may wait for itself, an answer that is not fetched yet holds its own.
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}", concurrency=len(sentences)) as client:
        pending = [client.async_infer("sentiment", [texts("text", [sentence])]) for sentence in sentences]
        assert [json.loads(one.get_result().as_numpy("output")[0]) for one in pending] == expected

    async def conversation() -> list[Any]:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{server.port}") as http:
            assert await http.is_server_ready()
            assert len(await http.get_model_repository_index()) == 3
            asked = (http.infer("sentiment", [texts("text", [sentence])]) for sentence in sentences)
            results = await asyncio.gather(*asked)
            with pytest.raises(InferenceServerException, match="no such model"):
                await http.infer("sentimental", [texts("text", ["a"])])
            return [json.loads(result.as_numpy("output")[0]) for result in results]

    assert asyncio.run(conversation()) == expected


def test_errors_reach_the_caller_with_status_and_reason(client: triton.InferenceServerClient) -> None:
    sentence = texts("text", ["a"])
    wrong: list[tuple[str, list[Any], dict[str, Any], str, str]] = [
        ("sentimental", [sentence], {}, "404", "did you mean 'sentiment'"),
        ("sentiment", [sentence], {"model_version": "2"}, "404", "one version here, '1'"),
        ("sentiment", [texts("txt", ["a"])], {}, "422", "/inputs/0/name: there is no such input"),
        ("qa", [texts("question", ["a"])], {}, "422", "'context' is missing"),
        ("sentiment", [numbers("input_ids", [[10**6]])], {}, "422", "/inputs/0/data: row 0, column 0"),
        ("sentiment", [sentence], {"timeout": 1000}, "422", "X-Request-Timeout-Ms"),
        ("sentiment", [sentence], {"outputs": [triton.InferRequestedOutput("x")]}, "422", "/outputs/0/name"),
        ("sentiment", [texts("text", ["a"] * 129)], {}, "413", "129 inputs"),
    ]
    for model, inputs, options, status, message in wrong:
        with pytest.raises(InferenceServerException) as error:
            client.infer(model, inputs, **options)
        assert error.value.status() == status
        assert message in error.value.message()
    with pytest.raises(InferenceServerException, match="no such model"):
        client.get_model_metadata("sentimental")
