"""A sparse language model from plain text, through the command line."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertForPreTraining
from typer.testing import CliRunner

from compression import loop, pretrain, prune, schedules, train
from compression.checkpoint import CheckpointError, encoder_matrices, load_model
from compression.cli import app
from compression.examples import DataError
from compression.language import language_matrices, load_language_model
from compression.pattern import MASKS_FILE, find_pattern, load_masks
from compression.read_recipe import parse_recipe
from compression.recipe import LanguageRecipe, RecipeError, Task
from tests.compression import tiny


def command(folder: Path, *, name: str = "run") -> list[str]:
    return ["run", str(folder / "r.toml"), "--data", str(folder), "--run-folder", str(folder / name), "--threads", "1"]


@pytest.fixture(scope="module", params=["bert", "distilbert"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, str]:
    """A whole run: BERT with next sentences, DistilBERT without. Gives family, folder and what the command said."""
    folder = tmp_path_factory.mktemp(request.param)
    base = tiny.checkpoint(folder / "base", family=request.param)
    (folder / "r.toml").write_text(tiny.language_recipe(base, folder, next_sentence=request.param == "bert", steps=150))
    result = CliRunner().invoke(app, command(folder))
    assert result.exit_code == 0, result.output
    return request.param, folder, result.output


def recipe_of(folder: Path) -> LanguageRecipe:
    recipe = parse_recipe((folder / "r.toml").read_text())
    assert isinstance(recipe, LanguageRecipe)
    return recipe


def test_the_language_is_learned_and_survives_pruning(finished: tuple[str, Path, str]) -> None:
    family, folder, output = finished
    scores = {line["stage"]: line["quick"] for line in train.read_metrics(folder / "run") if "quick" in line}
    # About a hundred tokens: a model that has learned nothing has a perplexity of that or more.
    assert scores["teacher"]["perplexity"] < 25 and scores["pruned"]["perplexity"] < 25
    assert ("next_sentence_accuracy" in scores["pruned"]) == (family == "bert")
    assert f"sparse {scores['pruned']['perplexity']:.2f}" in output


def test_the_result_is_an_ordinary_checkpoint_with_masks_beside_it(finished: tuple[str, Path, str]) -> None:
    family, folder, _ = finished
    pruned = folder / "run" / "pruned"
    model = AutoModelForMaskedLM.from_pretrained(pruned)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert AutoTokenizer.from_pretrained(pruned)("anna lives in oslo")["input_ids"][0] == 2  # [CLS]
    matrices = language_matrices(load_language_model(str(pruned), recipe_of(folder).task), recipe_of(folder).task)
    masks = load_masks(pruned)
    assert set(masks) == set(matrices)
    assert ("pooler" in masks) == (family == "bert")
    for name, mask in masks.items():
        assert not matrices[name].weight[~mask].any()
        assert float((~mask).float().mean()) == pytest.approx(0.8, abs=2e-3)
    student = load_model(str(pruned), Task("text-classification", ("a", "b"), window=32))
    locked, source = find_pattern(str(pruned), student)
    assert set(locked) == set(encoder_matrices(student)) and source == MASKS_FILE  # the pooler is free again
    card = (pruned / "README.md").read_text()
    assert "80.1 % of its encoder weights are zero" in card and (folder / "r.toml").read_text().rstrip() in card
    if family == "bert":
        _, report = BertForPreTraining.from_pretrained(pruned, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]


def test_both_stages_follow_their_schedules(finished: tuple[str, Path, str]) -> None:
    _, folder, _ = finished
    lines = [line for line in train.read_metrics(folder / "run") if line["stage"] == "prune" and "step" in line]
    recipe = recipe_of(folder)
    assert lines[-1]["step"] == 149
    for line in lines:
        rate = schedules.learning_rate(line["step"], 150, recipe.prune.training, recipe.prune)
        assert line["learning_rate"] == pytest.approx(rate)
        halves = 0.5 * line["task_loss"] + 0.5 * line["teacher_loss"]
        assert line["loss"] == pytest.approx(halves, rel=1e-4)
    assert {path.name for path in (folder / "run" / "plots").iterdir()} >= {"loss.png", "sparsity.png"}


def test_a_finished_run_does_nothing_again(finished: tuple[str, Path, str]) -> None:
    _, folder, output = finished
    before = (folder / "run" / "metrics.jsonl").read_text()
    (folder / "text.txt").rename(folder / "gone.txt")  # the tokens are kept
    again = CliRunner().invoke(app, command(folder))
    (folder / "gone.txt").rename(folder / "text.txt")
    assert again.exit_code == 0 and again.output.strip() in output
    assert (folder / "run" / "metrics.jsonl").read_text() == before


RESELECTED = "reselect_until = 0.8"
SURGEON = 'criterion = "obert"\npattern = "4x1"\nfisher = {gradients = 4, batch_size = 4, block = 8, damping = 1e-6}'
# How to prune, what a checkpoint must hold for it besides masks, after how many batches to stop: masks are chosen for
# 20 of the 40 steps, where they are reselected for 32; the surgeon takes 4 batches of his own every second step.
KINDS = {
    "reselected": (RESELECTED, "dropped", 24),
    "reselected blocks": (f'{RESELECTED}\nscope = "global"\npattern = "4x1"', "dropped", 24),
    "movement": ('criterion = "movement"\nscope = "global"', "movement", 17),
    "obert": (SURGEON, "", 50),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_stopped_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Stopped while masks are still chosen: what was dropped and how weights moved must come back too."""
    monkeypatch.setattr(train, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(train, "SAVE_COST", 0.0)
    how, key, batches = KINDS[kind]
    text = tiny.language_recipe(tiny.checkpoint(tmp_path / "base"), tmp_path, next_sentence=True)
    assert RESELECTED in text
    recipe = parse_recipe(text.replace(RESELECTED, how))
    assert isinstance(recipe, LanguageRecipe)
    weights: list[dict[str, Tensor]] = []
    for stop in (None, batches):
        run = pretrain.prepare(recipe, text, tmp_path, tmp_path / f"run-{stop}")
        teacher = pretrain.fit_teacher(run)
        if stop is not None:
            with monkeypatch.context() as patch, pytest.raises(tiny.Stop):
                patch.setattr(loop, "collate", tiny.stopping(loop.collate, stop))
                pretrain.fit_pruned(run, teacher)
            state = torch.load(run.folder / "state.pt", weights_only=True)
            assert 10 < state["step"] < (32 if key == "dropped" else 20)
            assert [name for name in ("dropped", "movement") if state[name]] == ([key] if key else [])
        pruned = pretrain.fit_pruned(pretrain.prepare(recipe, text, tmp_path, tmp_path / f"run-{stop}"), teacher)
        model = load_language_model(str(pruned), recipe.task)
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    matrices, masks = language_matrices(model, recipe.task), load_masks(pruned)
    assert set(masks) == set(matrices) and prune.mask_sparsity(masks) == pytest.approx(0.8, abs=5e-3)
    for name, matrix in matrices.items():
        assert not matrix.weight[~masks[name]].any()
        if "4x1" in how:
            blocks = masks[name].view(-1, 4, masks[name].shape[1])
            assert torch.equal(blocks.all(dim=1), blocks.any(dim=1))


def test_the_student_may_have_fewer_layers_than_its_teacher(tmp_path: Path) -> None:
    base = tiny.checkpoint(tmp_path / "base", layers=3)
    text = tiny.language_recipe(base, tmp_path, steps=6)
    (tmp_path / "r.toml").write_text(text.replace("[prune]", "[prune]\nkeep_layers = [0, 3]"))
    refused = CliRunner().invoke(app, command(tmp_path))
    assert refused.exit_code == 2 and "the checkpoint's layers are 0 to 2" in refused.output
    (tmp_path / "r.toml").write_text(text.replace("[prune]", "[prune]\nkeep_layers = [0, 2]"))
    result = CliRunner().invoke(app, command(tmp_path))
    assert result.exit_code == 0, result.output
    run, task = tmp_path / "run", recipe_of(tmp_path).task
    teacher, pruned = (load_language_model(str(run / name), task) for name in ("teacher", "pruned"))
    assert (teacher.config.num_hidden_layers, pruned.config.num_hidden_layers) == (3, 2)
    assert set(load_masks(run / "pruned")) == set(encoder_matrices(pruned))


def test_a_pattern_that_does_not_fit_the_model_is_refused_before_any_training(tmp_path: Path) -> None:
    base = tiny.checkpoint(tmp_path / "base")
    text = tiny.language_recipe(base, tmp_path).replace("sparsity = 0.8", 'sparsity = 0.4\npattern = "3:5"')
    (tmp_path / "r.toml").write_text(text)
    refused = CliRunner().invoke(app, command(tmp_path))
    assert refused.exit_code == 2 and "a multiple of 5, this model has one with 32" in refused.output
    assert not (tmp_path / "run").exists()


def test_a_language_model_that_is_good_as_it_is_needs_no_teacher_stage(tmp_path: Path) -> None:
    base = tiny.checkpoint(tmp_path / "base")
    text = tiny.language_recipe(base, tmp_path, steps=8)
    before, after = text.index("[teacher]"), text.index("[prune]")
    text = text[:before] + text[after:]
    (tmp_path / "r.toml").write_text(text)
    refused = CliRunner().invoke(app, command(tmp_path))
    assert refused.exit_code == 2 and "give the recipe a [teacher] stage" in refused.output
    recipe = parse_recipe(text)
    assert isinstance(recipe, LanguageRecipe)
    load_language_model(str(base), recipe.task, new_heads=True).save_pretrained(base)
    result = CliRunner().invoke(app, command(tmp_path))
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "run" / "teacher").exists() and (tmp_path / "run" / "pruned").is_dir()
    assert "dense" in result.output


def test_student_and_teacher_may_be_two_checkpoints_of_one_vocabulary(tmp_path: Path) -> None:
    small, large = tiny.checkpoint(tmp_path / "small"), tiny.checkpoint(tmp_path / "large", layers=4)
    text = tiny.language_recipe(small, tmp_path, steps=6).replace("[teacher]", f'[teacher]\ncheckpoint = "{large}"')
    text = text.replace("[prune.training]", "[prune.distillation]\nhidden = 1.0\n\n[prune.training]")
    (tmp_path / "r.toml").write_text(text)
    refused = CliRunner().invoke(app, command(tmp_path))
    assert refused.exit_code == 2 and f"checkpoint '{small}' lacks" in refused.output
    task = parse_recipe(text).task
    load_language_model(str(small), task, new_heads=True).save_pretrained(small)  # type: ignore[arg-type]
    result = CliRunner().invoke(app, command(tmp_path))
    assert result.exit_code == 0, result.output
    assert load_language_model(str(tmp_path / "run" / "teacher"), task).config.num_hidden_layers == 4  # type: ignore[arg-type]
    assert load_language_model(str(tmp_path / "run" / "pruned"), task).config.num_hidden_layers == 2  # type: ignore[arg-type]
    line = next(line for line in train.read_metrics(tmp_path / "run") if "hidden_loss" in line)
    assert 0 < line["hidden_loss"] < 4
    wide = tiny.checkpoint(tmp_path / "wide", hidden=64)
    wider = text.replace(str(large), str(wide))
    with pytest.raises(CheckpointError, match="the student is 32 wide, its teacher 64"):
        pretrain.prepare(parse_recipe(wider), wider, tmp_path, tmp_path / "wider")  # type: ignore[arg-type]
    assert not (tmp_path / "wider").exists()
    AutoTokenizer.from_pretrained(small)
    vocabulary = (large / "tokenizer.json").read_text().replace("paris", "milan")
    (large / "tokenizer.json").write_text(vocabulary)
    with pytest.raises(CheckpointError, match="differ in their vocabularies"):
        pretrain.prepare(parse_recipe(text), text, tmp_path, tmp_path / "other")  # type: ignore[arg-type]


def test_text_that_is_too_little_or_another_is_refused_before_any_training(tmp_path: Path) -> None:
    text = tiny.language_recipe(tiny.checkpoint(tmp_path / "base"), tmp_path, steps=6)
    recipe = parse_recipe(text)
    pretrain.prepare(recipe, text, tmp_path, tmp_path / "run")  # type: ignore[arg-type]
    (file,) = recipe.text.files  # type: ignore[union-attr]
    with (tmp_path / file).open("a") as more:
        more.write("\n\nanna went to oslo.\n")
    with pytest.raises(RecipeError, match="holds a run on other data"):
        pretrain.prepare(recipe, text, tmp_path, tmp_path / "run")  # type: ignore[arg-type]
    (tmp_path / file).write_text("\n\n".join(["anna went."] * 20))
    with pytest.raises(DataError, match=r"hold no window of at least \d+ tokens; give more text"):
        pretrain.prepare(recipe, text, tmp_path, tmp_path / "other")  # type: ignore[arg-type]


def test_check_tells_the_plan_without_training(tmp_path: Path) -> None:
    base = tiny.checkpoint(tmp_path / "base")
    (tmp_path / "r.toml").write_text(tiny.language_recipe(base, tmp_path))
    result = CliRunner().invoke(app, ["check", str(tmp_path / "r.toml"), "--data", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "in the first 40 documents" in result.output and "40 steps of 8 windows" in result.output
