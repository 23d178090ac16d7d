"""What a dry run says of a language recipe."""

from dataclasses import replace
from pathlib import Path

import pytest

from compression import plan_language, pretrain
from compression.language import language_matrices, load_language_model
from compression.plan import Cost
from compression.read_recipe import parse_recipe
from compression.recipe import LanguageRecipe
from tests.compression import tiny


@pytest.fixture(params=[True, False], ids=["nsp", "mlm"])
def prepared(request: pytest.FixtureRequest, tmp_path: Path) -> pretrain.PreparedText:
    base = tiny.checkpoint(tmp_path / "base")
    text = tiny.language_recipe(base, tmp_path, next_sentence=request.param)
    recipe = parse_recipe(text)
    assert isinstance(recipe, LanguageRecipe)
    return pretrain.prepare(recipe, text, tmp_path, tmp_path / "run")


def test_memory_of_both_stages(prepared: pretrain.PreparedText) -> None:
    recipe = prepared.recipe
    costs: dict[str, Cost] = {
        name: plan_language.measure(prepared, name, training) for name, training in recipe.stages()
    }
    model = load_language_model(recipe.checkpoint, recipe.task, new_heads=True)
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    teacher, pruning = costs["teacher"].memory, costs["prune"].memory
    assert teacher["weights"] == weights and "teacher" not in teacher and "masks" not in teacher
    assert pruning["teacher"] == weights
    assert pruning["masks"] >= 2 * (4 * 32 * 32 + 2 * 32 * 64)
    assert all(cost.memory["activations"] > 0 and cost.fixed + cost.per_token > 0 for cost in costs.values())


def test_it_trains_nothing_and_writes_nothing_into_the_run_folder(tmp_path: Path) -> None:
    base = tiny.checkpoint(tmp_path / "base")
    text = tiny.language_recipe(base, tmp_path, steps=40)
    recipe = parse_recipe(text)
    assert isinstance(recipe, LanguageRecipe)
    (tmp_path / "scratch").mkdir()
    lines = plan_language.describe(recipe, text, tmp_path, tmp_path / "scratch", tmp_path / "run")
    said = "\n".join(lines)
    assert not (tmp_path / "run").exists()
    for name, training in recipe.stages():
        assert any(line.startswith(name) and f"40 steps of {training.batch_size} windows" in line for line in lines)
    assert "in all     about " in said and "are available" in said and "are free" in said


def test_what_is_timed_is_one_part_of_a_batch(prepared: pretrain.PreparedText, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = tiny.watch_parts(monkeypatch)
    training = replace(prepared.recipe.prune.training, gradient_accumulation=2)
    plan_language.measure(prepared, "prune", training)
    assert set(cut) == {(1, 1), (4, 1)}, "batches of 8 in two parts"


def test_the_disk_holds_masks_and_what_is_set_aside_too(prepared: pretrain.PreparedText) -> None:
    recipe = prepared.recipe
    model = load_language_model(recipe.checkpoint, recipe.task, new_heads=True)
    masks = sum(matrix.weight.numel() for matrix in language_matrices(model, recipe.task).values())
    # Two checkpoints, one of them sparse; twice a state of weights, two moments, masks and weights set aside.
    expected = 4 * model.num_parameters() * (2 + 2 * 3) + masks * (1 + 2 * (1 + 4))
    prepared = replace(prepared, folder=prepared.folder / "none")
    assert pretrain.disk_needed(prepared) == expected
