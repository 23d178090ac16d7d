"""The command for the grown models: its recipes fit together, its record says what the models are."""

import csv
from pathlib import Path

import pytest

from bench import grown
from compression.read_recipe import load_recipe
from compression.recipe import Recipe
from compression.shapes import SHAPES


@pytest.mark.parametrize("task", grown.SMALL)
@pytest.mark.parametrize("shape", grown.SHAPES)
def test_every_shape_and_task_has_a_recipe_that_starts_from_the_grown_model(shape: str, task: str) -> None:
    path = grown.RECIPES / f"grown-{shape}-90-{task}.toml"
    recipe = load_recipe(path)
    assert isinstance(recipe, Recipe) and recipe.prune is not None
    assert recipe.checkpoint == f"runs/grown-{shape}-{task}" and not recipe.teacher.checkpoint
    assert recipe.teacher.trains and recipe.prune.sparsity == 0.9 and recipe.prune.scope == "matrix"
    assert f"grow runs/{grown.SMALL[task]}/teacher {recipe.checkpoint} --to {shape}" in path.read_text()
    small = load_recipe(grown.RECIPES / f"{grown.SMALL[task]}.toml")
    assert isinstance(small, Recipe)
    assert (small.task, small.data.train) == (recipe.task, recipe.data.train)


def test_the_shapes_are_those_that_can_be_grown() -> None:
    assert set(grown.SHAPES) == set(SHAPES)


def test_the_record_times_the_models_beside_the_small_one_and_says_what_they_are(tmp_path: Path) -> None:
    models = Path(__file__).parents[2] / "service" / "models"
    grown.main(
        [
            "report",
            str(models / "ner"),
            "--small",
            str(models / "sentiment"),
            "--record",
            str(tmp_path),
            "--rounds",
            "3",
        ]
    )
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["sentiment", "ner"]
    assert all(float(row["milliseconds"]) > 0 and row["shape"] == "bert 6 x 384, 12 heads" for row in rows)
    assert float(rows[0]["times_small"]) == 1.0
    text = (tmp_path / "README.md").read_text()
    assert "**grown from MiniLM**" in text and "| accuracy, 872 of sst-2 |" in text


def test_what_is_there_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(grown.subprocess, "run", lambda command, **_: called.append(command))
    (tmp_path / "runs" / "grown-bert-base-sst2").mkdir(parents=True)
    grown.main(["run", "--folder", str(tmp_path), "--shapes", "bert-base", "--tasks", "sst2"])
    assert [command[3] for command in called] == ["run"]
    (tmp_path / "runs" / "grown-bert-base-90-sst2" / "artifact").mkdir(parents=True)
    grown.main(["run", "--folder", str(tmp_path), "--shapes", "bert-base", "--tasks", "sst2"])
    assert len(called) == 1
