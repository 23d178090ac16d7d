"""The table of methods: its recipes are recipes, its numbers are those of the rows."""

import json
from pathlib import Path

import pytest

from bench import accuracy
from bench.methods import BUDGETS, METHODS, recipe, run_folder
from bench.record import read_rows, write_rows
from bench.results import with_results
from compression.read_recipe import parse_recipe
from compression.recipe import Recipe


@pytest.mark.parametrize("task", list(BUDGETS))
def test_every_method_gets_the_same_training(task: str) -> None:
    recipes = {}
    for method in METHODS:
        made = parse_recipe(recipe(method, task, 7))
        assert isinstance(made, Recipe) and made.seed == 7
        recipes[method] = made
    assert len({made.quantize for name, made in recipes.items() if name != "hidden"}) == 1, "8 bits are trained alike"
    assert {made.quantize.training for made in recipes.values()} == {recipes["dense"].quantize.training}
    trained = [made.prune or made.transfer for name, made in recipes.items() if name not in ("dense", "one-shot")]
    budgets = {(one.training.epochs, one.training.learning_rate, one.training.batch_size) for one in trained if one}
    assert len(trained) == 5 and len(budgets) == 1
    teachers = {made.teacher.checkpoint for name, made in recipes.items() if name != "dense"}
    assert teachers == {f"{run_folder('dense', task, 7)}/teacher"}, "all distil from one teacher"
    sparsities = {name: made.prune.sparsity for name, made in recipes.items() if made.prune}
    assert sparsities == {"dense": 0.0, "one-shot": 0.9, "task": 0.9, "hidden": 0.9, "obert": 0.9}


def finished(folder: Path, method: str, seed: int, dense: float, sparse: float, quantized: float) -> None:
    artifact = folder / run_folder(method, "ner", seed) / "artifact"
    artifact.mkdir(parents=True)
    quality = {"metric": "entity_f1", "examples": 9, "dense": dense, "sparse": sparse, "quantized": quantized}
    provenance = {"seeds": [seed], "minutes": {"teacher": 1.0, "prune": 2.5}}
    manifest = {"quality": quality, "provenance": provenance, "sparsity": {"overall": 0.9}}
    (artifact / "manifest.json").write_text(json.dumps(manifest))


def test_mean_spread_and_loss_to_the_dense_model_of_the_same_seed(tmp_path: Path) -> None:
    finished(tmp_path, "task", 1, 0.8, 0.72, 0.6)
    finished(tmp_path, "task", 2, 0.9, 0.72, 0.8)
    rows = list(accuracy.collect(tmp_path))
    assert [(row["seed"], row["minutes"]) for row in rows] == [(1, 3.5), (2, 3.5)]
    # 0.72 of 0.8 and of 0.9 lose a tenth and a fifth; the deviation of 60 and 80 is 10 times the root of two.
    line = "| gradual magnitude on the task, 90 % | 2 | 72.00 ± 0.00 | 15.0 % | 70.00 ± 14.14 | 18.1 % | 90.0 % | 4 |"
    assert line in accuracy.tables(rows).splitlines()
    assert "| Prune OFA, 90 % | not run | | | | | | |" in accuracy.tables(rows)
    write_rows(tmp_path / "rows.csv", rows)
    assert accuracy.tables(read_rows(tmp_path / "rows.csv")) == accuracy.tables(rows), "so do the committed rows"


def test_finished_runs_take_the_place_of_their_rows_and_leave_the_others(tmp_path: Path) -> None:
    finished(tmp_path, "task", 1, 0.8, 0.72, 0.6)
    finished(tmp_path, "one-shot", 2, 0.8, 0.1, 0.2)
    write_rows(tmp_path / "rows.csv", accuracy.collect(tmp_path))
    there = read_rows(tmp_path / "rows.csv")
    again = tmp_path / "again"
    finished(again, "task", 1, 0.8, 0.7, 0.7)
    finished(again, "dense", 10, 0.9, 0.9, 0.9)
    rows = accuracy.merged(there, list(accuracy.collect(again)))
    assert [(row["method"], int(row["seed"]), float(row["int8"])) for row in rows] == [
        ("dense", 10, 0.9),
        ("one-shot", 2, 0.2),
        ("task", 1, 0.7),
    ]


def test_the_page_shows_the_committed_rows() -> None:
    text = accuracy.RESULTS.read_text(encoding="utf-8")
    assert with_results(text, accuracy.tables(read_rows(accuracy.ROWS)), accuracy.BEGIN, accuracy.END) == text


def test_rows_wait_for_what_their_recipes_start_from() -> None:
    made = {job.folder.name: job for job in accuracy.jobs(["ner"], list(METHODS), [1, 2])}
    assert len(made) == 2 * len(METHODS) and made["dense-ner-1"].needs == ()
    teacher = Path(run_folder("dense", "ner", 2), "teacher")
    assert made["task-ner-2"].needs == (teacher,)
    assert made["ofa-85-ner-2"].needs == (Path("runs/minilm-85-lm/pruned"), teacher)
    siblings = {path.name for path in made["task-ner-2"].siblings}
    assert siblings == {f"{method}-ner-2" for method in METHODS} - {"task-ner-2"}
    assert made["dense-ner-2"].siblings == ()  # they learn from it


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no"):
        with_results("nothing", "table")
