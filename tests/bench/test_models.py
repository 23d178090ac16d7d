"""The page of the embedded models: a whole run on small artifacts, and what is committed agrees with itself."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification, BertConfig

import engine
from bench import models
from bench.judge import latency, records
from bench.judge.measurements import MEASUREMENTS
from bench.judge.page import page
from bench.judge.quality import quality
from bench.judge.subject import Subject
from bench.record import read_rows
from bench.results import with_results
from service.loading import load_models
from tests.bench.judged_data import TASKS, write_artifacts, write_data
from tests.random_artifact import write_random_artifact
from tests.service.artifacts import edit

NAMES = sorted(TASKS)
EMBEDDED = sorted(path.parent for path in models.EMBEDDED.glob("*/manifest.json"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run: data, models, record and page below one folder."""
    place = tmp_path_factory.mktemp("place")
    write_data(place / "data")
    write_artifacts(place / "models")
    config = BertConfig(
        vocab_size=engine.read_manifest(place / "models" / "sentiment").architecture.vocabulary,
        max_position_embeddings=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
    )  # fmt: skip
    for stage in ("teacher", "pruned"):
        AutoModelForSequenceClassification.from_config(config).save_pretrained(place / "run" / stage)
    (place / "page.md").write_text(f"# By hand\n\n{models.BEGIN}\n{models.END}\n\nAnd after.\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "ROUNDS", 4)
        patch.setattr(latency, "LEAST_SECONDS", 1e-4)
        judge(place, "--teachers", f"sentiment={place / 'run'}")
        yield place


def judge(place: Path, *more: str) -> None:
    folders = {"--data": "data", "--models": "models", "--record": "record", "--page": "page.md"}
    models.main([*(word for name, path in folders.items() for word in (name, str(place / path))), *more])


def test_a_run_measures_everything(place: Path) -> None:
    assert records.models(place / "record") == NAMES
    for name in records.models(place / "record"):
        found = records.tables(place / "record", name)
        assert set(found) == {*MEASUREMENTS, *(["floats"] if name == "sentiment" else [])}
        sets = {row["set"] for row in found["scores"]}
        assert len(sets) == {"intent": 1, "ner": 5, "qa": 2, "sentiment": 2}[name]
        for row in found["scores"]:
            assert 0 <= float(row["low"]) <= float(row["score"]) <= float(row["high"]) <= 100
        assert sum(int(row["examples"]) for row in found["lengths"]) == int(found["scores"][0]["examples"])
        assert len(found["latency"]) == 4 * 3
        assert (place / "record" / name / "reliability.png").stat().st_size > 1000
        assert 0 < len(found["errors"]) <= 20


def test_sizes_are_the_files(place: Path) -> None:
    for folder in (place / "models").iterdir():
        rows = {row["part"]: row for row in read_rows(place / "record" / folder.name / "size.csv")}
        sizes = engine.read_manifest(folder).size
        assert int(rows["encoder"]["bytes"]) == sizes["encoder_bytes"]
        assert int(rows["embeddings"]["bytes"]) == sizes["embedding_bytes"]
        parts = ("embeddings", "encoder", "norms", "head", "tokenizer")
        # What is left is the header of the file of tensors.
        assert 0 < sizes["total_bytes"] - sum(int(rows[part]["bytes"]) for part in parts) < 16_000
        dense = sum(int(rows[part]["dense_bytes"]) for part in parts[:-1])
        assert dense == sizes["dense_fp32_bytes"]


def test_float_models_stand_beside_the_artifact_on_the_same_examples(place: Path) -> None:
    rows = read_rows(place / "record" / "sentiment" / "floats.csv")
    assert [row["model"] for row in rows] == ["dense", "sparse", "artifact"] * 2
    scores = {row["set"]: row["score"] for row in read_rows(place / "record" / "sentiment" / "scores.csv")}
    for row in rows:
        if row["model"] == "artifact":
            assert row["score"] == scores[row["set"]]
        if row["model"] == "dense":
            assert float(row["loss"]) == 0


def test_manifests_hold_what_was_measured_and_still_load(place: Path) -> None:
    for folder in (place / "models").iterdir():
        manifest = engine.read_manifest(folder)
        rows = records.tables(place / "record", folder.name)
        factor = 1 if folder.name == "qa" else 100
        assert manifest.quality["quantized"] == round(float(rows["scores"][0]["score"]) / factor, 4)
        assert manifest.quality["dense"] == 0.5, "what is known of other models stays"
        assert [one["set"] for one in manifest.quality["others"]] == [row["set"] for row in rows["scores"][1:]]
        card = (folder / "README.md").read_text()
        assert "95 % interval" in card and ("in training: no test" in card) == (folder.name == "qa")
    assert load_models(place / "models", threads=1).failures == {}


def test_what_is_measured_is_not_measured_again_unless_weights_change(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    copy = tmp_path / "place"
    shutil.copytree(place, copy)
    asked: list[tuple[str, str]] = []

    def noted(subject: Subject, measurement: str) -> Iterator[dict[str, object]]:
        asked.append((subject.manifest.name, measurement))
        return MEASUREMENTS[measurement](subject)

    replaced = {name: lambda subject, name=name: noted(subject, name) for name in ("facts", "size", "errors")}
    monkeypatch.setattr(models, "MEASUREMENTS", replaced)
    before = {path: path.read_bytes() for path in sorted(copy.rglob("*")) if path.is_file() and path.suffix != ".txt"}
    judge(copy, "--teachers", f"sentiment={place / 'run'}")
    assert asked == [(name, "facts") for name in NAMES]
    asked.clear()
    assert before == {path: path.read_bytes() for path in before}
    # Other weights under the same name, and a run that was stopped before its last measurement.
    recipe = engine.read_manifest(copy / "models" / "sentiment").provenance["recipe"]
    sizes = {"layers": 1, "hidden": 32, "heads": 2, "ffn": 64}
    write_random_artifact(copy / "models" / "sentiment", name="sentiment", task="text-classification", seed=9, **sizes)
    edit(copy / "models" / "sentiment", lambda manifest: manifest["provenance"].update(recipe=recipe))
    edit(copy / "models" / "sentiment", lambda manifest: manifest["quality"].update(metric="accuracy"))
    (copy / "record" / "qa" / "errors.csv").unlink()
    judge(copy)
    assert asked == [
        *((name, "facts") for name in NAMES[:-1]),
        ("qa", "errors"),
        *(("sentiment", name) for name in replaced),
    ]
    assert "scores" not in records.tables(copy / "record", "sentiment"), "rows of the former weights are out"
    assert engine.read_manifest(copy / "models" / "sentiment").quality["quantized"] is None
    assert "| not measured |" in (copy / "page.md").read_text()


def test_the_page_is_made_of_rows_alone(place: Path) -> None:
    text = (place / "page.md").read_text()
    models.write_page(place / "record", place / "new.md")
    assert page(place / "record") in (place / "new.md").read_text()
    assert text.startswith("# By hand\n") and text.endswith("\nAnd after.\n")
    assert with_results(text, page(place / "record"), models.BEGIN, models.END) == text
    (place / "page.md").write_text(with_results(text, "", models.BEGIN, models.END))
    judge(place, "report")
    assert (place / "page.md").read_text() == text
    for name in NAMES:
        assert f"\n## {name}\n" in text
    assert "100 %: no test" in text, "the reviews are in the training file"


def test_errors_are_shown_with_texts_and_readings(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = read_rows(place / "record" / "sentiment" / "errors.csv")[0]
    reading = {"model": "sentiment", "example": row["example"], "found": row["found"], "reading": "my own words"}
    (place / "record" / "readings.csv").write_text(",".join(reading) + "\n" + ",".join(reading.values()) + "\n")
    judge(place, "errors")
    shown = capsys.readouterr().out
    assert shown.count("reading: my own words") == 1 and "reading: none yet" in shown
    assert " film" in shown and "right: london" in shown and "/B-PER" in shown
    assert "my own words" in page(place / "record")
    (place / "record" / "readings.csv").unlink()


def test_wrong_uses_are_named(place: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="NAME=RUN"):
        judge(place, "--teachers", "sentiment=nowhere")
    with pytest.raises(SystemExit, match="holds no folder with a manifest"):
        models.main(["--models", str(tmp_path)])
    write_random_artifact(tmp_path / "models" / "random", task="text-classification")
    with pytest.raises(SystemExit, match="has no recipe in its manifest"):
        models.main(["--models", str(tmp_path / "models"), "--record", str(tmp_path)])
    shutil.copytree(place / "models" / "ner", tmp_path / "other" / "ner")
    with pytest.raises(SystemExit, match=r"eng\.train|eng\.testa: no such file"):
        models.main(["--models", str(tmp_path / "other"), "--record", str(tmp_path), "--data", str(tmp_path)])


def test_the_committed_page_shows_the_committed_rows() -> None:
    text = models.PAGE.read_text(encoding="utf-8")
    assert with_results(text, page(models.RECORD), models.BEGIN, models.END) == text


@pytest.mark.parametrize("folder", EMBEDDED, ids=lambda folder: folder.name)
def test_the_committed_rows_are_about_the_embedded_weights(folder: Path) -> None:
    """Where this fails an artifact was replaced: run `python -m bench.models --data DATA`."""
    manifest = engine.read_manifest(folder)
    rows = records.tables(models.RECORD, manifest.name)
    assert set(MEASUREMENTS) <= set(rows)
    assert manifest.files["model.safetensors"]["sha256"].startswith(rows["facts"][0]["weights"])
    assert json.loads(json.dumps(quality(manifest.quality, rows))) == manifest.quality
