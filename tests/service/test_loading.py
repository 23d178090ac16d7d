"""Artifacts that are damaged, or do not answer as they promise, do not serve; the others do."""

import logging
from pathlib import Path
from typing import Any

import pytest

import engine
from service.errors import InvalidRequestError, StartupError, UnknownModelError
from service.loading import GoldenError, load_model, load_models
from tests.service import artifacts
from tests.service.artifacts import CLS, NER, QA


def test_a_folder_of_artifacts_serves_them_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    models = load_models(artifacts.write_all(tmp_path), threads=1)
    assert sorted(models.serving) == ["ner", "qa", "sentiment"]
    assert not models.failures
    assert models.find(QA, None).name == "qa"
    assert models.find(NER, "ner").details["sparsity"].startswith("0.")
    assert caplog.text.count("1 golden examples right") == 3


def test_the_first_model_by_name_is_the_tasks_default(tmp_path: Path) -> None:
    for name in ("b-model", "a-model"):
        artifacts.write(tmp_path, CLS, name=name)
    models = load_models(tmp_path, threads=1)
    assert models.find(CLS, None).name == "a-model"
    assert models.find(CLS, "b-model").name == "b-model"
    with pytest.raises(UnknownModelError, match=r"did you mean 'b-model'.*; here: a-model, b-model"):
        models.find(CLS, "bmodel")
    with pytest.raises(InvalidRequestError, match="ask it at /v1/text-classification"):
        models.find(NER, "a-model")
    with pytest.raises(UnknownModelError, match="no model here does token-classification"):
        models.find(NER, None)


def test_preferred_models_go_before_the_first_by_name_while_they_serve(tmp_path: Path) -> None:
    for name in ("a-model", "b-model", "c-model"):
        artifacts.write(tmp_path, CLS, name=name)
    artifacts.write(tmp_path, NER, name="z-model")
    models = load_models(tmp_path, 1, ("gone", "z-model", "c-model", "b-model"))
    assert models.find(CLS, None).name == "c-model"
    assert models.find(NER, None).name == "z-model"
    models.serving = {name: model for name, model in models.serving.items() if name != "c-model"}
    assert models.find(CLS, None).name == "b-model"


def test_no_other_model_answers_for_a_preferred_one_that_is_damaged(tmp_path: Path) -> None:
    artifacts.write_all(tmp_path)
    artifacts.write(tmp_path, CLS, name="intent")
    weights = tmp_path / "sentiment" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    models = load_models(tmp_path, 1, ("sentiment",))
    with pytest.raises(
        UnknownModelError,
        match=r"the default for text-classification, sentiment, does not serve; name one: intent "
        r"\(failed to load: sentiment\)",
    ):
        models.find(CLS, None)
    assert models.default(CLS) is None
    assert models.find(CLS, "intent").name == "intent"
    assert models.find(QA, None).name == "qa"
    # One that was asked for next is no stranger.
    assert load_models(tmp_path, 1, ("sentiment", "intent")).find(CLS, None).name == "intent"


def test_the_only_model_of_a_task_answers_where_no_preferred_one_is_of_it(tmp_path: Path) -> None:
    artifacts.write(tmp_path, CLS, name="own")
    artifacts.write(tmp_path, NER)
    (tmp_path / "ner" / "model.safetensors").unlink()
    assert load_models(tmp_path, 1, ("sentiment", "ner")).find(CLS, None).name == "own"


@pytest.mark.parametrize("task", [QA, CLS, NER])
def test_a_model_that_does_not_give_its_golden_answer_does_not_serve(tmp_path: Path, task: str) -> None:
    wrong: dict[str, Any] = {
        QA: {"answer": "mary", "start": 18, "end": 21},
        CLS: {"label": "neutral"},
        NER: [{"entity_group": "LOC", "start": 1, "end": 2}],
    }
    path = artifacts.write(tmp_path, task)
    load_model(path, threads=1)
    artifacts.edit(path, lambda manifest: manifest["golden"][0].update(expected=wrong[task]))
    with pytest.raises(GoldenError, match=r"golden example 0 gives .* the manifest expects"):
        load_model(path, threads=1)


@pytest.mark.parametrize("bad", [{"input": 3, "expected": {}}, {"expected": {}}, {"input": " ", "expected": {}}])
def test_a_golden_example_that_is_none_is_named(tmp_path: Path, bad: dict[str, Any]) -> None:
    path = artifacts.write(tmp_path, CLS)
    artifacts.edit(path, lambda manifest: manifest.update(golden=[bad]))
    with pytest.raises((GoldenError, engine.ArtifactError), match="golden"):
        load_model(path, threads=1)


def test_one_bad_artifact_leaves_the_others_serving(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    artifacts.write_all(tmp_path)
    weights = tmp_path / "ner" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    (tmp_path / "qa" / "manifest.json").write_text("{")
    models = load_models(tmp_path, threads=1)
    assert list(models.serving) == ["sentiment"]
    assert models.failures["ner"].startswith("ChecksumError: ")
    assert models.failures["qa"].startswith("ManifestSyntaxError: ")
    assert "model ner does not serve: ChecksumError" in caplog.text


def test_a_model_of_pairs_serves_with_golden_examples_of_pairs(tmp_path: Path) -> None:
    path = artifacts.write(tmp_path, CLS)
    artifacts.edit(path, lambda manifest: manifest["task"].update(pairs=True))
    with pytest.raises(GoldenError, match="the model reads pairs"):
        load_model(path, threads=1)
    pair = {"text": "a good film", "text_pair": "a bad film"}
    artifacts.edit(path, lambda manifest: manifest["golden"][0].update(input=pair, expected={"label": "none"}))
    with pytest.raises(GoldenError, match=r"gives \{'label': '(positive|negative)'\}"):
        load_model(path, threads=1)
    artifacts.edit(path, lambda manifest: manifest.update(golden=[]))
    assert load_model(path, threads=1).pairs


def test_what_a_model_may_answer_comes_from_its_manifest(tmp_path: Path) -> None:
    path = artifacts.write(tmp_path, CLS)
    assert not load_model(path, threads=1).multi_label
    artifacts.edit(path, lambda manifest: manifest["task"].update(multi_label=True))
    assert load_model(path, threads=1).multi_label
    path = artifacts.write(tmp_path, QA)
    assert load_model(path, threads=1).no_answer_threshold is None
    artifacts.edit(path, lambda manifest: manifest["task"].update(no_answer_threshold=-50.0))
    with pytest.raises(GoldenError, match="'answer': ''"):
        load_model(path, threads=1)


def test_two_artifacts_of_one_name_do_not_both_serve(tmp_path: Path) -> None:
    artifacts.write(tmp_path, CLS).rename(tmp_path / "first")
    artifacts.write(tmp_path, CLS)
    models = load_models(tmp_path, threads=1)
    assert list(models.serving) == ["sentiment"]
    assert "is called 'sentiment' too" in models.failures["sentiment"]


def test_hidden_folders_are_no_models(tmp_path: Path) -> None:
    artifacts.write(tmp_path, CLS).rename(tmp_path / ".partial")
    with pytest.raises(StartupError, match="no subfolder"):
        load_models(tmp_path, None)


def test_a_folder_without_artifacts_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"no subfolder with a manifest.json; put an artifact there"):
        load_models(tmp_path, None)
    with pytest.raises(StartupError, match=r"there is no models folder .*; set SPARSELANE_MODELS_DIR"):
        load_models(tmp_path / "missing", None)


def test_threads_that_cannot_be_started_stop_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifacts.write(tmp_path, CLS)

    def refused(*_: object, **__: object) -> None:
        raise RuntimeError("cannot start thread 2 of 64: Resource temporarily unavailable; ask for fewer threads")

    monkeypatch.setattr(engine, "load", refused)
    with pytest.raises(StartupError, match="cannot start thread 2 of 64"):
        load_models(tmp_path, None)


def test_a_tokenizer_that_came_after_the_check_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = artifacts.write(tmp_path, CLS)
    load = engine.load

    def swapped(*arguments: Any, **named: Any) -> Any:
        loaded = load(*arguments, **named)
        (path / "new").write_bytes((path / "tokenizer.json").read_bytes())
        (path / "new").rename(path / "tokenizer.json")
        return loaded

    monkeypatch.setattr(engine, "load", swapped)
    (failure,) = load_models(tmp_path, None).failures.values()
    assert "was replaced while it was read" in failure


def test_more_threads_than_cpus_stop_the_start(tmp_path: Path) -> None:
    artifacts.write(tmp_path, CLS)
    with pytest.raises(StartupError, match="threads is 4096, must be 1 to"):
        load_models(tmp_path, 4096)
