"""A sparse checkpoint to a task with its pattern locked: through training, a stop, quantization and export."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

from compression import loop, run, train
from compression.checkpoint import CheckpointError, encoder_matrices, load_model
from compression.cli import app
from compression.pattern import MASKS_FILE, load_masks
from compression.read_recipe import parse_recipe
from compression.recipe import Recipe, Task
from compression.teacher import load_teacher
from tests.compression import tiny

TASK = "text-classification"


def command(folder: Path) -> list[str]:
    options = ["--data", str(folder), "--run-folder", str(folder / "run"), "--threads", "1"]
    return ["run", str(folder / "r.toml"), *options]


def prepared(tmp_path: Path, *, masks: bool = True, epochs: float = 3, name: str = "run") -> run.Prepared:
    sparse = tiny.sparse_checkpoint(tmp_path / "sparse", masks=masks)
    dense = tiny.checkpoint(tmp_path / "dense")
    text = tiny.transfer_recipe(TASK, sparse, dense, tmp_path, epochs=epochs)
    recipe = parse_recipe(text)
    assert isinstance(recipe, Recipe)
    return run.prepare(recipe, text, tmp_path, tmp_path / name)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run through the command line, from a sparse checkpoint that holds trained zeros too."""
    folder = tmp_path_factory.mktemp("transfer")
    sparse = tiny.sparse_checkpoint(folder / "sparse")
    dense = tiny.checkpoint(folder / "dense")
    (folder / "r.toml").write_text(tiny.transfer_recipe(TASK, sparse, dense, folder, epochs=12))
    model = load_model(str(sparse), Task(TASK, ("negative", "positive"), window=32))
    masks = load_masks(sparse)
    with torch.no_grad():
        for name, matrix in encoder_matrices(model).items():
            # Two rows of zeros, a fifth of them trained weights. Not of the keys too: where query and key are both
            # zero neither has a gradient.
            if not name.endswith("key"):
                matrix.weight[:2] = 0.0
            assert masks[name][:2].any()
    model.base_model.save_pretrained(sparse)
    result = CliRunner().invoke(app, command(folder))
    assert result.exit_code == 0, result.output
    assert "80.1 % of the encoder's weights are locked, by masks.safetensors" in result.output
    return folder


def test_pruned_weights_stay_zero_in_every_checkpoint_and_trained_zeros_do_not(finished: Path) -> None:
    masks = load_masks(finished / "sparse")
    for stage in ("transferred", "quantized-1", "quantized"):
        model = load_model(str(finished / "run" / stage), Task(TASK, ("negative", "positive"), window=32))
        kept = load_masks(finished / "run" / stage)
        for name, matrix in encoder_matrices(model).items():
            assert torch.equal(kept[name], masks[name])
            assert torch.equal(matrix.weight == 0, ~masks[name]), f"{stage} {name}"


def test_zeros_of_the_exported_file_are_the_mask_and_what_rounds_to_zero(finished: Path) -> None:
    masks = load_masks(finished / "sparse")
    model = load_model(str(finished / "run" / "quantized"), Task(TASK, ("negative", "positive"), window=32))
    tensors = load_file(finished / "run" / "artifact" / "model.safetensors")
    for name, matrix in encoder_matrices(model).items():
        weight = matrix.weight.detach().numpy()
        step = np.abs(weight).max(axis=1, keepdims=True) / 64
        rounded = np.rint(weight / np.where(step == 0, 1, step))
        survivors = tensors[f"{name}.row_survivors"].astype(int)
        assert survivors.tolist() == (rounded != 0).sum(axis=1).tolist()
        assert (survivors <= masks[name].sum(dim=1).numpy()).all()


def test_the_artifact_is_judged_beside_its_dense_teacher(finished: Path) -> None:
    manifest = json.loads((finished / "run" / "artifact" / "manifest.json").read_text())
    assert manifest["quality"]["dense"] > 0.9 and manifest["quality"]["quantized"] > 0.9
    assert manifest["sparsity"]["overall"] >= 0.8 and manifest["quantization"]["attention"] == "int8"
    assert set(manifest["provenance"]["minutes"]) == {"teacher", "transfer", "quantize", "rewind-1"}
    line = next(line for line in train.read_metrics(finished / "run") if "pattern" in line)
    assert line["pattern"] == MASKS_FILE and line["locked"] == pytest.approx(0.8, abs=1e-3)


def test_the_lock_holds_through_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(train, "SAVE_COST", 0.0)
    weights = []
    for stop in (None, 23):
        one = prepared(tmp_path, name=f"run-{stop}", epochs=4)
        teacher = run.fit_teacher(one)
        if stop is not None:
            with monkeypatch.context() as patch, pytest.raises(tiny.Stop):
                patch.setattr(loop, "collate", tiny.stopping(loop.collate, stop))
                run.fit_sparse(one, teacher)
            state = torch.load(one.folder / "state.pt", weights_only=True)
            for name, mask in one.locked.items():
                assert torch.equal(state["masks"][name], mask)
        target = run.fit_sparse(one, teacher)
        weights.append(load_model(str(target), one.recipe.task).state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_without_a_mask_file_the_report_says_that_zeros_are_the_pattern(tmp_path: Path) -> None:
    sparse = tiny.sparse_checkpoint(tmp_path / "sparse", masks=False)
    dense = tiny.checkpoint(tmp_path / "dense")
    (tmp_path / "r.toml").write_text(tiny.transfer_recipe(TASK, sparse, dense, tmp_path))
    result = CliRunner().invoke(app, ["check", str(tmp_path / "r.toml"), "--data", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "80.1 % of the encoder's weights, by exact zeros" in result.output
    assert "transfer          30 steps of 16 windows (3 epochs)" in result.output


def finetuned(folder: Path, labels: tuple[str, ...]) -> Path:
    """A checkpoint as published: a head for the task, label names of its own."""
    base = tiny.checkpoint(folder)
    model = AutoModelForSequenceClassification.from_pretrained(
        base, id2label=dict(enumerate(labels)), label2id={name: i for i, name in enumerate(labels)}
    )
    torch.nn.init.normal_(model.get_submodule("classifier").weight)
    model.save_pretrained(base)
    return base


def test_a_fine_tuned_teacher_is_taken_as_it_is(tmp_path: Path) -> None:
    one = prepared(tmp_path)
    published = finetuned(tmp_path / "published", ("NEGATIVE", "POSITIVE"))
    text = taken_as_it_is(tmp_path, published)
    recipe = parse_recipe(text)
    assert isinstance(recipe, Recipe) and next(name for name, _ in recipe.stages()) == "transfer"
    taken = run.fit_teacher(run.prepare(recipe, text, tmp_path, tmp_path / "other"))
    theirs, ours = (load_model(str(folder), one.recipe.task).state_dict() for folder in (published, taken))
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def taken_as_it_is(folder: Path, teacher: Path) -> str:
    """The text of a recipe that takes `teacher` without training it."""
    sparse = tiny.sparse_checkpoint(folder / "sparse")
    text = tiny.transfer_recipe(TASK, sparse, tiny.checkpoint(folder / "dense"), folder)
    start, end = text.index("[teacher]"), text.index("[transfer.training]")
    return f'{text[:start]}[teacher]\ncheckpoint = "{teacher}"\n\n{text[end:]}'


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("positive", "negative"), "answers ['positive', 'negative'], the recipe ['negative', 'positive']"),
        ((), "is not fine-tuned for text-classification: it lacks classifier."),
    ],
)
def test_check_holds_a_teacher_that_is_taken_as_it_is_against_the_recipe(
    tmp_path: Path, labels: tuple[str, ...], message: str
) -> None:
    teacher = finetuned(tmp_path / "t", labels) if labels else tiny.checkpoint(tmp_path / "t")
    (tmp_path / "r.toml").write_text(taken_as_it_is(tmp_path, teacher))
    result = CliRunner().invoke(app, ["check", str(tmp_path / "r.toml"), "--data", str(tmp_path)])
    assert result.exit_code == 2 and message in result.output


@pytest.mark.parametrize("swapped", [False, True])
def test_a_teacher_whose_unnamed_outputs_are_in_another_order_is_doubted(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, swapped: bool
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(finished / "run" / "teacher")
    model.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    if swapped:
        for parameter in model.get_submodule("classifier").parameters():
            parameter.data = parameter.data.flip(0)
    published = tiny.checkpoint(tmp_path / "published")
    model.save_pretrained(published)
    text = taken_as_it_is(tmp_path, published)
    recipe = parse_recipe(text)
    assert isinstance(recipe, Recipe)
    for _ in range(2):  # a run that goes on is as wrong as before
        caplog.clear()
        run.fit_teacher(run.prepare(recipe, text, tmp_path, tmp_path / "run"))
        assert ("knowing nothing gives 0.5000: are its outputs in another order" in caplog.text) == swapped


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("positive", "negative"), r"answers \['positive', 'negative'\], the recipe \['negative', 'positive'\]"),
        (("a", "b", "c"), "give task.labels in its order"),
    ],
)
def test_a_teacher_with_other_answers_is_refused(tmp_path: Path, labels: tuple[str, ...], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_teacher(str(finetuned(tmp_path, labels)), Task(TASK, ("negative", "positive")))


def test_a_teacher_without_names_is_taken_in_the_recipes_order(tmp_path: Path) -> None:
    base = finetuned(tmp_path, ("LABEL_0", "LABEL_1"))
    assert load_teacher(str(base), Task(TASK, ("negative", "positive"))).config.num_labels == 2


def test_a_dense_checkpoint_is_refused_before_any_training(tmp_path: Path) -> None:
    dense = tiny.checkpoint(tmp_path / "dense")
    (tmp_path / "r.toml").write_text(tiny.transfer_recipe(TASK, dense, dense, tmp_path))
    result = CliRunner().invoke(app, command(tmp_path))
    assert result.exit_code == 2
    assert "a pattern to lock needs 10 %: use 'prune' for a dense checkpoint" in result.output
    assert not (tmp_path / "run").exists()


def test_hidden_states_lead_a_transfer_through_to_its_artifact(tmp_path: Path) -> None:
    sparse = tiny.sparse_checkpoint(tmp_path / "sparse")
    text = tiny.transfer_recipe(TASK, sparse, tiny.checkpoint(tmp_path / "dense"), tmp_path, epochs=3)
    for stage in ("transfer", "quantize"):
        text = text.replace(f"[{stage}.training]", f"[{stage}.distillation]\nhidden = 2.0\n\n[{stage}.training]")
    (tmp_path / "r.toml").write_text(text)
    result = CliRunner().invoke(app, command(tmp_path))
    assert result.exit_code == 0, result.output
    for stage in ("transfer", "quantize"):
        lines = [line for line in train.read_metrics(tmp_path / "run") if line["stage"] == stage]
        found = [line for line in lines if "hidden_loss" in line]
        assert 0 < found[-1]["hidden_loss"] < found[0]["hidden_loss"]
    assert not (tmp_path / "run" / "teacher_logits.safetensors").exists()


def test_hidden_states_of_another_width_are_refused_before_any_training(tmp_path: Path) -> None:
    sparse = tiny.sparse_checkpoint(tmp_path / "sparse")
    text = tiny.transfer_recipe(TASK, sparse, tiny.checkpoint(tmp_path / "dense", hidden=64), tmp_path)
    text = text.replace("[transfer.training]", "[transfer.distillation]\nhidden = 2.0\n\n[transfer.training]")
    (tmp_path / "r.toml").write_text(text)
    result = CliRunner().invoke(app, command(tmp_path))
    assert result.exit_code == 2
    assert "the student is 32 wide, its teacher 64" in result.output
    assert not (tmp_path / "run").exists()


def test_a_teacher_with_another_vocabulary_is_refused(tmp_path: Path) -> None:
    one = prepared(tmp_path)
    words = tmp_path / "dense" / "tokenizer.json"
    words.write_text(words.read_text().replace("paris", "milan"))
    with pytest.raises(CheckpointError, match="differ in their vocabularies"):
        run.prepare(one.recipe, "", tmp_path, tmp_path / "other")
