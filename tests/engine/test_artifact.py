"""Every way in which an artifact can be wrong is one named error."""

import hashlib
import inspect
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine
from engine import _engine
from engine import artifact as errors
from tests.engine.damage import Tensors, edit_manifest, edit_tensors, seal
from tests.random_artifact import write_random_artifact

SMALL = {"layers": 1, "hidden": 8, "heads": 2, "ffn": 12, "sparsity": 0.5, "positions": 16}
QUERY = "encoder.0.query"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts") / "small"
    write_random_artifact(folder, **SMALL, golden=[{"input": {"question": "a", "context": "b"}, "expected": {}}])
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "artifact")


def refused(folder: Path, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        engine.load(folder, threads=1)
    assert type(caught.value) is error


def test_the_manifest_as_python_sees_it(original: Path) -> None:
    manifest = engine.read_manifest(original)
    assert manifest.name == "random"
    assert (manifest.architecture.hidden, manifest.architecture.family) == (8, "bert")
    assert (manifest.task.labels, manifest.task.window) == (("start", "end"), 16)
    assert manifest.matrices["encoder.0.ffn_in"].rows == 12
    assert manifest.golden[0]["input"]["question"] == "a"
    assert manifest.raw == json.loads((original / "manifest.json").read_text())
    assert engine.load(str(original)).manifest == manifest


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors", "tokenizer.json", "README.md"])
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder, errors.MissingFileError, f"{name} cannot be read: No such file")


def test_no_folder(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", errors.MissingFileError, "nowhere/manifest.json")


SYNTAX = [b"", b"{", b"\xff\xfe", b'{"a": NaN}', b'{"a": 1e999}', b"[" * 100_000, b"1" * 400, b"1" * 5000]


@pytest.mark.parametrize("text", SYNTAX)
def test_manifest_syntax(folder: Path, text: bytes) -> None:
    (folder / "manifest.json").write_bytes(text)
    refused(folder, errors.ManifestSyntaxError, "is not UTF-8 JSON")


def test_a_number_of_any_depth_is_refused_by_a_named_error(folder: Path) -> None:
    """Python writes JSON less deeply than it reads it: the message must not fail where the check did not."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for depth in range(900, 1000):
        manifest["architecture"]["layers"] = "HERE"
        text = json.dumps(manifest).replace('"HERE"', "[" * depth + "]" * depth)
        (folder / "manifest.json").write_text(text)
        with pytest.raises((errors.InvalidFieldError, errors.ManifestSyntaxError)):
            engine.read_manifest(folder)


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors", "tokenizer.json", "README.md"])
def test_a_pipe_is_no_file_to_wait_for(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    refused(folder, errors.MissingFileError, f"{name} cannot be read: it is not a regular file")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_file_that_is_written_to_while_it_is_hashed_is_not_taken(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.file_digest

    def hashed_then_changed(file: Any, kind: str) -> Any:
        found = digest(file, kind)
        if Path(f"/proc/self/fd/{file.fileno()}").readlink().name == name:
            with (folder / name).open("r+b") as other:
                first = other.read(1)
                other.seek(0)
                other.write(first)
            os.utime(folder / name, ns=(1, 1))  # so soon that the clock of files may not have moved
        return found

    monkeypatch.setattr(hashlib, "file_digest", hashed_then_changed)
    refused(folder, errors.ChecksumError, f"{name} was replaced while it was read")


@pytest.mark.parametrize("version", [0, 2, "1", None, True, 1.0])
def test_unknown_version(folder: Path, version: object) -> None:
    edit_manifest(folder, lambda m: m.update(format_version=version))
    refused(folder, errors.UnknownVersionError, "this engine reads 1")


FIELDS = [
    ["format_version"], ["name"], ["architecture"], ["architecture", "hidden"], ["architecture", "layer_norm_eps"],
    ["task", "labels"], ["task", "head_activation"], ["task", "max_answer_tokens"], ["quantization", "weights"],
    ["sparsity", "overall"], ["matrices", QUERY], ["matrices", QUERY, "rice"], ["quality"], ["size"], ["provenance"],
    ["files", "README.md"], ["files", "tokenizer.json", "sha256"], ["golden"],
]  # fmt: skip


@pytest.mark.parametrize("path", FIELDS, ids=".".join)
def test_missing_field(folder: Path, path: list[str]) -> None:
    def remove(manifest: dict[str, Any]) -> None:
        for key in path[:-1]:
            manifest = manifest[key]
        del manifest[path[-1]]

    edit_manifest(folder, remove)
    refused(folder, errors.MissingFieldError, f"{'.'.join(path)} is missing")


INVALID: list[tuple[list[str], object, str]] = [
    (["name"], "../../etc", "name is .* must be text like"),
    (["name"], 7, "name is 7"),
    (["architecture"], [], r"architecture is \[\], must be an object"),
    (["architecture", "family"], "gpt", "must be one of bert, distilbert"),
    (["architecture", "family"], ["bert"], "must be one of bert, distilbert"),
    (["architecture", "layers"], 0, "must be an integer from 1 to 1024"),
    (["architecture", "layers"], 1.0, "architecture.layers is 1.0, must be an integer"),
    (["quantization", "attention"], "int4", "one of float32, int8"),
    (["architecture", "hidden"], 10**30, "must be an integer from 1 to 8192"),
    (["architecture", "heads"], 3, "hidden is 8, must be a multiple of architecture.heads, 3"),
    (["architecture", "types"], 0, "must be an integer from 1 to 16"),
    (["architecture", "activation"], "swish", "must be one of gelu, relu"),
    (["architecture", "layer_norm_eps"], "0", "must be a number from"),
    (["task", "name"], "summarization", "must be one of question-answering"),
    (["task", "labels"], "start", "must be a list of texts"),
    (["task", "labels"], ["a\ud83d", "b"], "must be Unicode texts"),
    (["task", "labels"], ["a", "a"], "must be all different"),
    (["task", "head_activation"], "tanh", "must be one of null"),
    (["task", "window"], 17, "task.window is 17, must be an integer from 3 to 16"),
    (["task", "stride"], 16, "task.stride is 16, must be an integer from 0 to 13"),
    (["task", "max_answer_tokens"], None, "max_answer_tokens is null"),
    (["task", "pairs"], "yes", 'pairs is "yes", must be true or false'),
    (["task", "pairs"], True, "pairs is true, must be false for question-answering"),
    (["task", "multi_label"], 1, "multi_label is 1, must be true or false"),
    (["task", "multi_label"], True, "multi_label is true, must be false for question-answering"),
    (["task", "no_answer_threshold"], "0", "must be a number from"),
    (["task", "no_answer_threshold"], True, "must be a number from"),
    (["task", "no_answer_threshold"], 1e300, "must be a number from"),
    (["quantization", "weights"], "int4", "must be one of int8-symmetric-per-row-64"),
    (["sparsity", "overall"], 1.5, "must be a number from 0.0 to 1.0"),
    (["matrices", QUERY, "rows"], 9, "rows is 9, must be an integer from 8 to 8"),
    (["matrices", QUERY, "survivors"], 65, "must be an integer from 0 to 64"),
    (["matrices", QUERY, "rice"], 16, "must be an integer from 0 to 15"),
    (["matrices", "encoder.1.query"], {}, "must be absent"),
    (["files", "README.md", "sha256"], "00", "must be text like"),
    (["golden"], [{"input": ""}], "must be a list of objects with input and expected"),
]


@pytest.mark.parametrize(("path", "value", "message"), INVALID)
def test_invalid_field(folder: Path, path: list[str], value: object, message: str) -> None:
    def replace(manifest: dict[str, Any]) -> None:
        for key in path[:-1]:
            manifest = manifest[key]
        manifest[path[-1]] = value

    edit_manifest(folder, replace)
    refused(folder, errors.InvalidFieldError, message)


@pytest.mark.parametrize("labels", [[], ["start"], ["start", "end", "none"], ["end", "start"]])
def test_label_count(folder: Path, labels: list[str]) -> None:
    edit_manifest(folder, lambda m: m["task"].update(labels=labels))
    refused(folder, errors.LabelCountError, r'must be \["start", "end"\]')


def test_artifacts_from_before_the_kinds_of_tasks_are_of_none(folder: Path) -> None:
    for name in ("pairs", "multi_label", "no_answer_threshold"):
        edit_manifest(folder, lambda m, name=name: m["task"].pop(name, None))
    task = engine.read_manifest(folder).task
    assert (task.pairs, task.multi_label, task.no_answer_threshold) == (False, False, None)


def test_kinds_of_tasks(folder: Path, tmp_path: Path) -> None:
    edit_manifest(folder, lambda m: m["task"].update(no_answer_threshold=-2))
    assert engine.read_manifest(folder).task.no_answer_threshold == -2.0
    write_random_artifact(tmp_path / "a", **SMALL, task="text-classification")
    edit_manifest(tmp_path / "a", lambda m: m["task"].update(pairs=True, multi_label=True))
    task = engine.read_manifest(tmp_path / "a").task
    assert task.pairs and task.multi_label
    edit_manifest(tmp_path / "a", lambda m: m["task"].update(no_answer_threshold=0.0))
    refused(
        tmp_path / "a", errors.InvalidFieldError, "no_answer_threshold is 0.0, must be null for text-classification"
    )


def test_no_labels(tmp_path: Path) -> None:
    write_random_artifact(tmp_path / "a", **SMALL, task="token-classification")
    edit_manifest(tmp_path / "a", lambda m: m["task"].update(labels=[]))
    refused(tmp_path / "a", errors.LabelCountError, "holds 0 labels")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "README.md"])
def test_checksum(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    refused(folder, errors.ChecksumError, f"{name} has sha256")
    (folder / name).write_bytes(content[:-1])
    refused(folder, errors.ChecksumError, f"{name} has .* bytes, the manifest says")


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_corrupt_tensors(folder: Path, keep: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    seal(folder)
    refused(folder, errors.CorruptTensorsError, "model.safetensors cannot be parsed")


def put(name: str, value: np.ndarray) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: value})


def at(name: str, index: int, value: float) -> Callable[[Tensors], object]:
    return lambda tensors: tensors[name].flat.__setitem__(index, value)


TENSORS: list[tuple[type[Exception], str, Callable[[Tensors], object]]] = [
    (errors.MissingTensorError, "0.query.scale is missing", lambda t: t.pop(f"{QUERY}.scale")),
    (errors.UnexpectedTensorError, "extra has no place", put("extra", np.zeros(1))),
    (errors.TensorDtypeError, "query.scale has dtype F64, must have F32", put(f"{QUERY}.scale", np.ones(8))),
    (errors.TensorShapeError, r"word has shape \[3, 8\]", put("embeddings.word", np.ones((3, 8), np.int8))),
    (errors.TensorShapeError, r"value_lengths has shape \[2\]", put(f"{QUERY}.value_lengths", np.ones(2, np.uint8))),
    (errors.TensorDtypeError, "query.values has dtype I8", put(f"{QUERY}.values", np.ones(2, np.int8))),
    (errors.TensorShapeError, r"positions has shape \[1, 1\]", put(f"{QUERY}.positions", np.ones((1, 1), np.uint8))),
    (errors.SurvivorCountError, "query.row_survivors sum to", at(f"{QUERY}.row_survivors", 0, 99)),
    (errors.IndexRangeError, "query: row 0 has a survivor at column", at(f"{QUERY}.positions", 0, 0)),
    (errors.PositionsTruncatedError, "query: the stream ends", put(f"{QUERY}.positions", np.ones(1, np.uint8))),
    (errors.PositionsTrailingError, "query: bits are left", put(f"{QUERY}.positions", np.full(99, 255, np.uint8))),
    (errors.ValueCodeError, "query: a code has 13 bits", at(f"{QUERY}.value_lengths", 0, 13)),
    (errors.ValuesTruncatedError, "query: .* values do not fit", put(f"{QUERY}.values", np.ones(1, np.uint8))),
    (errors.ValuesTrailingError, "query: bits are left", put(f"{QUERY}.values", np.full(999, 1, np.uint8))),
    (errors.ScaleError, "query.scale holds a scale", at(f"{QUERY}.scale", 0, np.nan)),
    (errors.ScaleError, "query.scale holds a scale", at(f"{QUERY}.scale", 0, 0)),
    (errors.ScaleError, "word.scale holds a scale", at("embeddings.word.scale", 0, np.inf)),
    (errors.NotFiniteError, "query.bias holds a number", at(f"{QUERY}.bias", 0, np.inf)),
    (errors.NotFiniteError, "head.output.weight holds a number", at("head.output.weight", 0, np.nan)),
]


@pytest.mark.parametrize(("error", "message", "edit"), TENSORS)
def test_tensors(folder: Path, error: type[Exception], message: str, edit: Callable[[Tensors], object]) -> None:
    edit_tensors(folder, edit)
    refused(folder, error, message)


def test_an_error_on_any_thread_reaches_the_caller(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "threads_from_quota", lambda: 4)
    edit_tensors(folder, at("encoder.0.ffn_out.value_lengths", 0, 13))
    for _ in range(20):
        with pytest.raises(errors.ValueCodeError, match="ffn_out: a code has 13 bits"):
            engine.load(folder, threads=4)


def test_both_sides_name_the_matrices_alike() -> None:
    assert list(errors.MATRICES) == _engine.MATRICES


def test_every_error_has_a_test_and_a_line_in_the_tree() -> None:
    tests = inspect.getsource(inspect.getmodule(test_tensors))  # type: ignore[arg-type]
    for name, kind in vars(errors).items():
        if inspect.isclass(kind) and issubclass(kind, errors.ArtifactError) and kind is not errors.ArtifactError:
            assert f"errors.{name}" in tests
            assert f"── {name} " in (errors.__doc__ or "")


def test_numbers_beyond_all_measure_do_not_crash(folder: Path) -> None:
    def blow_up(tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            if tensor.dtype == np.float32:
                tensor[...] = 3e38 if name.endswith((".scale", ".weight")) else -3e38

    edit_tensors(folder, blow_up)
    for isa in engine.supported_isas():
        model = engine.load(folder, threads=1, isa=isa)
        assert model.forward(np.arange(11, dtype=np.int32), np.array([5, 6], np.int32)).shape == (11, 2)
