import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from compression import files, plan, run
from compression.checkpoint import load_model
from compression.cli import app
from compression.encode import Window
from compression.failures import TrainingError
from compression.loop import Stage, open_loop
from compression.read_recipe import parse_recipe
from compression.recipe import Recipe, Training
from tests.compression import tiny

OBERT = 'criterion = "obert"\nfisher = {gradients = 4, batch_size = 4, block = 8}'


def prepared(tmp_path: Path, **changes: str) -> run.Prepared:
    base = tiny.checkpoint(tmp_path / "base")
    text = tiny.recipe("text-classification", base, tmp_path)
    for old, new in changes.items():
        text = text.replace(old.replace("_", " "), new)
    return run.prepare(parse_recipe(text), text, tmp_path, tmp_path / "run")


def window(length: int) -> Window:
    return Window(
        0, np.ones(length, np.int32), np.zeros(length, np.int32), np.zeros(1, np.int32), np.empty(0, np.int32)
    )


def test_rounds_by_hand(tmp_path: Path) -> None:
    windows = [window(6)] * 30 + [window(10)] * 2  # two batches of 16 an epoch, the long ones in one of them
    rounds = {planned.name: planned for planned in plan.plan_rounds(replace(prepared(tmp_path), train_windows=windows))}
    assert list(rounds) == ["teacher", "prune", "quantize", "rewind-1"]
    assert rounds["teacher"].steps == 6 and rounds["teacher"].tokens == 3 * 16 * (6 + 10)
    assert rounds["rewind-1"].steps == 1
    assert [planned.windows for planned in rounds.values()] == [16, 8, 16, 16], "prune accumulates over two parts"
    assert not any(planned.live for planned in rounds.values()), "prune's kept logits serve the later rounds"
    assert [planned.quantized for planned in rounds.values()] == [False, False, True, True]


def test_hidden_states_are_taught_live_and_cost_what_they_cost(tmp_path: Path) -> None:
    hidden = "[prune.distillation]\nhidden = 2.0\n\n[prune.training]"
    one = prepared(tmp_path, **{"[prune.training]": hidden})
    rounds = {planned.name: planned for planned in plan.plan_rounds(one)}
    assert rounds["prune"].live and rounds["prune"].compares_hidden
    assert rounds["quantize"].live and not rounds["quantize"].compares_hidden, "one epoch, and no logits were kept"
    assert plan.measure(one, rounds["prune"]).seconds(rounds["prune"]) > 0


def test_memory_of_weights_gradients_and_moments(tmp_path: Path) -> None:
    one = prepared(tmp_path)
    rounds = {planned.name: planned for planned in plan.plan_rounds(one)}
    model = load_model(one.recipe.checkpoint, one.recipe.task)
    weights = sum(parameter.numel() for parameter in model.parameters())
    frozen = sum(parameter.numel() for parameter in model.base_model.get_submodule("embeddings").parameters())
    teacher = plan.measure(one, rounds["teacher"])
    assert teacher.memory["weights"] == teacher.memory["gradients"] == teacher.memory["Adam"] / 2 == 4 * weights
    assert "teacher" not in teacher.memory and "masks" not in teacher.memory
    quantize = plan.measure(one, rounds["quantize"])
    assert quantize.memory["gradients"] == 4 * (weights - frozen), "this recipe freezes the embeddings here"
    assert quantize.memory["masks"] == 2 * (4 * 32 * 32 + 2 * 32 * 64)
    assert quantize.memory["teacher"] == 4 * weights
    assert teacher.seconds(rounds["teacher"]) > 0


def test_activations_grow_with_windows_and_hold_what_the_layers_need(tmp_path: Path) -> None:
    one = prepared(tmp_path)
    model = load_model(one.recipe.checkpoint, one.recipe.task)
    kept = [plan.kept_for_backward(model, [window(20)] * count) for count in (1, 2, 3)]
    assert kept[2] - kept[1] == pytest.approx(kept[1] - kept[0], rel=0.05)
    # At least the inputs of a layer's matrices: twice [T, 32] into attention, [T, 32] and [T, 64] into the ffn.
    assert kept[1] - kept[0] >= 4 * 20 * 2 * (2 * 32 + 32 + 64)


def test_gradients_that_are_not_clipped_are_left_as_they_are(tmp_path: Path) -> None:
    one = prepared(tmp_path)
    seen: dict[float, list[Tensor]] = {}
    for most in (1e-3, 1e9, math.inf):
        torch.manual_seed(0)  # the head starts at random
        model = load_model(one.recipe.checkpoint, one.recipe.task)
        training = Training(learning_rate=1e-3, epochs=1, max_gradient_norm=most)
        loop = open_loop(model, Stage("teacher", one.recipe.task.name, training, 0, one.train_windows, {}, {}), 10)
        loop.step(1, range(16))
        seen[most] = [parameter.detach().clone() for parameter in model.parameters()]
    assert all(map(torch.equal, seen[math.inf], seen[1e9])), "no norm is larger"
    assert not all(map(torch.equal, seen[math.inf], seen[1e-3]))


def test_what_is_timed_is_one_part_of_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = prepared(tmp_path)
    planned = next(planned for planned in plan.plan_rounds(one) if planned.name == "prune")
    cut = tiny.watch_parts(monkeypatch)
    plan.measure(one, planned)
    assert set(cut) == {(1, 1), (8, 1)}, "batches of 16 in two parts"
    assert planned.steps == 30 and plan.Cost(2.0, 0.0, {}).seconds(planned) == 2.0 * 2 * 30


def test_a_run_that_the_disk_cannot_hold_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = prepared(tmp_path)
    plan.check_disk(one)
    needed = plan.disk_needed(one)
    weights = sum(parameter.numel() for parameter in load_model(one.recipe.checkpoint, one.recipe.task).parameters())
    masks = 2 * (4 * 32 * 32 + 2 * 32 * 64)
    # Four checkpoints, three of them sparse, twice a state of three times the weights and the masks, the artifact.
    assert needed >= 4 * weights * (4 + 6 + 1) + masks * (3 + 2)
    text = (one.folder / "recipe.toml").read_text()
    for changes, kept in (("reselect_until = 0.5", 4 * masks), ('criterion = "movement"', 4 * masks), (OBERT, 0)):
        recipe = parse_recipe(text.replace("[prune]", f"[prune]\n{changes}"))
        assert isinstance(recipe, Recipe)
        other = replace(one, recipe=recipe)
        assert plan.disk_needed(other) - needed == 2 * kept, changes
    (one.folder / "teacher").mkdir()
    (one.folder / "teacher" / "model.safetensors").write_bytes(bytes(50_000))
    assert needed - plan.disk_needed(one) == 50_000, "what a stopped run has written already is there"
    monkeypatch.setattr(files, "free_bytes", lambda _folder: 1000)
    with pytest.raises(
        TrainingError, match=r"the run needs about .* of disk, 1 kB are free; make room, or give another"
    ):
        plan.check_disk(one)


@pytest.mark.parametrize("command", [["check"], ["run", "--dry-run"]])
def test_the_dry_run_says_all_and_writes_nothing(tmp_path: Path, command: list[str]) -> None:
    base = tiny.checkpoint(tmp_path / "base")
    (tmp_path / "r.toml").write_text(tiny.recipe("text-classification", base, tmp_path))
    options = [
        str(tmp_path / "r.toml"),
        "--data",
        str(tmp_path),
        "--run-folder",
        str(tmp_path / "run"),
        "--threads",
        "1",
    ]
    result = CliRunner().invoke(app, [*command, *options])
    assert result.exit_code == 0, result.output
    for part in (
        "12 matrices that are pruned to 80 % zeros",
        "160 windows",
        "30 steps of 16 windows (3 epochs)",
        "prune ",
        "rewind-1 ",
        "Adam ",
        "activations ",
        "teacher logits, once",
        "of training on this machine with 1 thread(s), from 2 timed steps",
        "are available",
        "are free",
    ):
        assert part in result.output
    assert not (tmp_path / "run").exists()


def test_units() -> None:
    assert [files.shown_bytes(n) for n in (0, 999, 1000, 1_234_567, 98_765_432_100)] == [
        "0 B",
        "999 B",
        "1 kB",
        "1.23 MB",
        "98.8 GB",
    ]
    assert [plan.shown_duration(s) for s in (3, 600, 10_000)] == ["about 3 s", "about 10 min", "about 2.8 h"]
