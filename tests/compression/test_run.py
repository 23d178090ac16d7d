import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

import engine
from compression import run
from compression.cli import app
from compression.read_recipe import parse_recipe
from compression.recipe import RecipeError
from tests.compression import tiny

METRICS = {"text-classification": "accuracy", "token-classification": "entity_f1", "question-answering": "f1"}


@pytest.fixture(scope="module", params=list(METRICS))
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A whole run of each task through the command line: checkpoint to artifact."""
    folder = tmp_path_factory.mktemp(request.param)
    base = tiny.checkpoint(folder / "base", family="distilbert" if request.param == "token-classification" else "bert")
    (folder / "tiny.toml").write_text(tiny.recipe(request.param, base, folder, epochs=12))
    options = ["--data", str(folder), "--run-folder", str(folder / "run"), "--threads", "1"]
    result = CliRunner().invoke(app, ["run", str(folder / "tiny.toml"), *options])
    assert result.exit_code == 0, result.output
    return request.param, folder


def test_the_artifact_holds_the_recipe_quality_and_golden_answers(finished: tuple[str, Path]) -> None:
    task, folder = finished
    manifest = engine.read_manifest(folder / "run" / "artifact").raw
    quality = manifest["quality"]
    assert quality["metric"] == METRICS[task]
    best = 100.0 if task == "question-answering" else 1.0
    assert quality["dense"] >= 0.9 * best, "the made-up task is easy"
    assert quality["quantized"] >= 0.7 * best
    assert manifest["sparsity"]["overall"] >= 0.8
    assert manifest["provenance"]["recipe"] == (folder / "tiny.toml").read_text()
    assert set(manifest["provenance"]["minutes"]) == {"teacher", "prune", "quantize", "rewind-1"}
    assert len(manifest["golden"]) == 1 and manifest["golden"][0]["expected"]
    assert manifest["provenance"]["recipe"] in (folder / "run" / "artifact" / "README.md").read_text()


def test_pruned_weights_are_absent_from_the_file(finished: tuple[str, Path]) -> None:
    _, folder = finished
    masks = run.load_masks(folder / "run" / "pruned")
    tensors = load_file(folder / "run" / "artifact" / "model.safetensors")
    for name, mask in masks.items():
        # A survivor may round to zero and go too, a pruned weight may never come back.
        assert (tensors[f"{name}.row_survivors"].astype(int) <= mask.sum(dim=1).numpy()).all()


def test_evaluate_reads_the_artifact_alone_and_agrees_with_the_manifest(finished: tuple[str, Path]) -> None:
    task, folder = finished
    artifact = folder / "run" / "artifact"
    result = CliRunner().invoke(app, ["evaluate", str(artifact), str(folder / f"{task}.data"), "--threads", "1"])
    assert result.exit_code == 0, result.output
    quality = json.loads((artifact / "manifest.json").read_text())["quality"]
    assert f"{METRICS[task]} {quality['quantized']:.4f}" in result.output


def test_every_stage_is_an_ordinary_checkpoint(finished: tuple[str, Path]) -> None:
    from transformers import AutoModel

    _, folder = finished
    for name in ("teacher", "pruned", "quantized-1", "quantized"):
        assert AutoModel.from_pretrained(folder / "run" / name).config.num_hidden_layers == 2


def test_a_finished_run_does_nothing_again(finished: tuple[str, Path]) -> None:
    _, folder = finished
    before = (folder / "run" / "quantized" / "model.safetensors").stat().st_mtime_ns
    lines = (folder / "run" / "metrics.jsonl").read_text()
    options = ["--data", str(folder), "--run-folder", str(folder / "run"), "--threads", "1"]
    assert CliRunner().invoke(app, ["run", str(folder / "tiny.toml"), *options]).exit_code == 0
    assert (folder / "run" / "quantized" / "model.safetensors").stat().st_mtime_ns == before
    assert (folder / "run" / "metrics.jsonl").read_text().startswith(lines)


def test_check_tells_the_plan_without_training(tmp_path: Path) -> None:
    base = tiny.checkpoint(tmp_path / "base")
    (tmp_path / "r.toml").write_text(tiny.recipe("text-classification", base, tmp_path))
    result = CliRunner().invoke(app, ["check", str(tmp_path / "r.toml"), "--data", str(tmp_path)])
    assert result.exit_code == 0
    assert "160 windows" in result.output and "30 steps of 16 windows" in result.output


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sparsity = 0.8", "sparsty = 0.8", "did you mean 'prune.sparsity'"),
        ("text-classification.data", "missing.tsv", "no such file; give the folder that holds it with --data"),
        ('["negative", "positive"]', '["negative", "neutral"]\nunused = 1', "unknown key 'task.unused'"),
        ("window = 32", "window = 512", "the checkpoint has 64 positions"),
        ('"text-classification"', '"token-classification"', "unknown tag"),
    ],
)
def test_mistakes_end_at_once_with_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    base = tiny.checkpoint(tmp_path / "base")
    (tmp_path / "r.toml").write_text(tiny.recipe("text-classification", base, tmp_path).replace(old, new))
    result = CliRunner().invoke(
        app, ["run", str(tmp_path / "r.toml"), "--data", str(tmp_path), "--run-folder", str(tmp_path / "x")]
    )
    assert result.exit_code == 2
    assert result.output.startswith("error: ") and message in result.output
    assert not (tmp_path / "x" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("task", "old", "new", "message"),
    [
        ("text-classification", "the story was superb", " ", r"'golden\[0\]' is \[\]|has 0 tokens"),
        (
            "text-classification",
            "the story was superb",
            "\u200b",
            r"'golden\[0\]\.text' has 0 tokens; it must have at l",
        ),
        ("pairs", "a superb story", "a superb story " * 12, r"is a pair of \d+ tokens; it must have at most 29"),
    ],
)
def test_a_golden_example_is_one_that_the_service_takes(
    tmp_path: Path, task: str, old: str, new: str, message: str
) -> None:
    text = tiny.recipe(task, tiny.checkpoint(tmp_path / "base"), tmp_path).replace(old, new)
    with pytest.raises(RecipeError, match=message):
        run.prepare(parse_recipe(text), text, tmp_path, tmp_path / "run")  # type: ignore[arg-type]


def test_a_folder_with_a_run_on_other_data_is_refused(tmp_path: Path) -> None:
    text = tiny.recipe("text-classification", tiny.checkpoint(tmp_path / "base"), tmp_path)
    folder = tmp_path / "run"
    for _ in range(2):
        run.prepare(parse_recipe(text), text, tmp_path, folder)  # type: ignore[arg-type]
    path = tmp_path / "text-classification.data"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:1] + lines[2:]))
    with pytest.raises(RecipeError, match="holds a run on other data: its files have changed"):
        run.prepare(parse_recipe(text), text, tmp_path, folder)  # type: ignore[arg-type]


def test_more_threads_than_there_are_are_refused_before_any_training(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(tiny.recipe("text-classification", tiny.checkpoint(tmp_path / "base"), tmp_path))
    for command in (["run", str(path), "--data", str(tmp_path)], ["evaluate", str(tmp_path), "x.tsv"]):
        result = CliRunner().invoke(app, [*command, "--threads", "4096"])
        assert result.exit_code == 2 and "--threads is 4096; this machine gives" in result.output
    assert not (tmp_path / "runs").exists()


def test_a_golden_question_is_no_longer_than_the_service_reads_it(tmp_path: Path) -> None:
    text = tiny.recipe("question-answering", tiny.checkpoint(tmp_path / "base"), tmp_path)
    text = text.replace("where does anna live?", "where does anna live " * 4)
    with pytest.raises(RecipeError, match=r"'golden\[0\]\.question' has 16 tokens; it must have at most 14"):
        run.prepare(parse_recipe(text), text, tmp_path, tmp_path / "run")  # type: ignore[arg-type]


def test_a_folder_with_another_run_is_refused(tmp_path: Path) -> None:
    text = tiny.recipe("text-classification", tiny.checkpoint(tmp_path / "base"), tmp_path)
    run.prepare(parse_recipe(text), text, tmp_path, tmp_path / "run")
    with pytest.raises(RecipeError, match="holds a run of another recipe"):
        run.prepare(parse_recipe(text), text.replace("seed = 3", "seed = 4"), tmp_path, tmp_path / "run")
