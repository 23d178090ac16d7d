"""The curve of sparsities: its recipes are those of the embedded models, its numbers those of the rows."""

import json
from pathlib import Path

import pytest

from bench import curve
from bench.embedded import NAMES, RECIPES
from bench.record import read_rows, write_rows
from bench.results import with_results
from compression.read_recipe import parse_recipe
from compression.recipe import Recipe


def test_only_the_sparsity_is_another_and_one_teacher_serves_all() -> None:
    made = curve.jobs(NAMES, Path("here"))
    first = [job for job in made if job.teacher is None]
    assert sorted(parse_recipe(job.recipe).name for job in first) == sorted(NAMES)
    order = [job.folder for job in made]
    assert all(order.index(job.teacher) < order.index(job.folder) for job in made if job.teacher)
    recipes = {job.folder: parse_recipe(job.recipe) for job in made}
    for job in made:
        recipe, other = recipes[job.folder], recipes[job.teacher or job.folder]
        assert isinstance(recipe, Recipe) and isinstance(other, Recipe) and recipe.prune and other.prune
        assert recipe.prune.sparsity in curve.SPARSITIES
        assert (recipe.teacher, recipe.data, recipe.quantize) == (other.teacher, other.data, other.quantize)
        assert recipe.prune.training == other.prune.training
    points = {(recipe.name, recipe.prune.sparsity) for recipe in recipes.values()}  # type: ignore[union-attr]
    embedded = {(name, parse_recipe((RECIPES / f"{name}.toml").read_text()).prune.sparsity) for name in NAMES}  # type: ignore[union-attr]
    assert not points & embedded and len(points | embedded) == len(NAMES) * len(curve.SPARSITIES)


@pytest.mark.parametrize("text", ["", "sparsity = 0.8\nsparsity = 0.9"])
def test_a_recipe_without_one_sparsity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="one line"):
        curve.at_sparsity(text, 0.9)


def finished(folder: Path, sparsity: float, quantized: float) -> None:
    folder.mkdir(parents=True)
    quality = {"dataset": "d", "split": "dev", "metric": "accuracy", "examples": 9, "dense": 0.9, "sparse": 0.88}
    manifest = {
        "quality": quality | {"quantized": quantized},
        "sparsity": {"overall": sparsity},
        "size": {"ratio_encoder": 25.04, "total_bytes": 5_900_000},
        "provenance": {"minutes": {"teacher": 1.0, "prune": 2.5}},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_rows_are_sorted_by_zeros_and_a_small_loss_stands_out(tmp_path: Path) -> None:
    finished(tmp_path / "models" / "ner", 0.9, 0.81)
    finished(tmp_path / "models" / "qa", 0.9, 0.81)
    finished(tmp_path / curve.run_folder("ner", 0.8) / "artifact", 0.8, 0.8955)
    rows = list(curve.collect(tmp_path, tmp_path / "models"))
    assert [row["sparsity"] for row in rows] == [0.8, 0.9] and rows[0]["minutes"] == 3.5
    assert curve.table(rows).splitlines()[2:] == [
        "| ner, d dev | 80 % | 90.0 | 88.0 | 89.5 | **0.5 %** | 25x | 5.9 MB |",
        "| ner, d dev | 90 % | 90.0 | 88.0 | 81.0 | 10.0 % | 25x | 5.9 MB |",
    ]
    write_rows(tmp_path / "rows.csv", rows)
    assert curve.table(read_rows(tmp_path / "rows.csv")) == curve.table(rows), "so do the committed rows"
    curve.draw(rows, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_shows_the_committed_rows() -> None:
    text = curve.RESULTS.read_text(encoding="utf-8")
    assert with_results(text, curve.table(read_rows(curve.ROWS)), curve.BEGIN, curve.END) == text
