"""Recorded steps: the way a step is done to be recorded trains as the direct one; on a GPU, replayed steps do too."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compression import loop as stepping
from compression import run, train
from compression.checkpoint import encoder_matrices, load_model
from compression.objective import Batch
from compression.prune import Masks
from compression.read_recipe import parse_recipe
from compression.recipe import Distillation, Fisher, Prune
from compression.teacher import live_teacher
from tests.compression import tiny

FISHER = Fisher(gradients=8, batch_size=4, block=8)


class Direct:
    """Stands in for the recorder where there is no GPU: does every step at once, and counts."""

    def __init__(self, work: Callable[[Batch], Tensor]) -> None:
        self.work, self.steps, self.forgotten = work, 0, 0

    def __call__(self, batch: Batch) -> Tensor:
        self.steps += 1
        return self.work(batch)

    def forget(self) -> None:
        self.forgotten += 1


def trained(one: run.Prepared, folder: Path, schedule: Prune, steps: int) -> tuple[dict[str, Tensor], Masks, object]:
    """Train a few steps with distillation; return the weights, the masks and the loop's recorder."""
    folder.mkdir()
    torch.manual_seed(0)
    model = load_model(one.recipe.checkpoint, one.recipe.task)
    teacher = load_model(one.recipe.checkpoint, one.recipe.task)
    teacher.to(run.processes.device())  # type: ignore[arg-type]
    distillation = Distillation(hidden=1.0)
    stage = stepping.Stage(
        "prune",
        one.recipe.task.name,
        schedule.training,
        1,
        one.train_windows[1:],  # the last batch of an epoch is short
        encoder_matrices(model),
        {},
        schedule,
        distillation,
        live_teacher(teacher, hidden=True),
        live_teacher=True,
        record=True,
    )
    plan = train._plan(stage)
    loop = stepping.open_loop(model, stage, len(plan))
    for step in range(steps):
        loop.step(step, plan[step])
    return {name: value.detach().cpu() for name, value in model.state_dict().items()}, loop.masks, loop.recorder


def prepared(tmp_path: Path) -> run.Prepared:
    text = tiny.recipe("text-classification", tiny.checkpoint(tmp_path / "base"), tmp_path, epochs=3)
    return run.prepare(parse_recipe(text), text, tmp_path, tmp_path / "run")


@pytest.mark.parametrize("criterion", ["magnitude", "obert"])
@pytest.mark.filterwarnings("ignore:.*capturable.*")
def test_a_step_done_to_be_recorded_is_the_direct_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, criterion: str
) -> None:
    """Masks change in place on the way, the last batch of an epoch is short, the learning rate is a tensor."""
    one = prepared(tmp_path)
    assert one.recipe.prune
    whole = replace(one.recipe.prune.training, gradient_accumulation=1)
    schedule = replace(one.recipe.prune, criterion=criterion, update_every=3, end=0.6, training=whole, fisher=FISHER)
    wanted, masks, nobody = trained(one, tmp_path / "direct", schedule, 25)
    assert nobody is None, "on a CPU nothing is recorded"
    monkeypatch.setattr(stepping, "Recorder", Direct)
    monkeypatch.setattr(stepping.Loop, "can_be_recorded", property(lambda _loop: True))
    found, same, recorder = trained(one, tmp_path / "recorded", schedule, 25)
    assert isinstance(recorder, Direct)
    assert 0 < recorder.steps < 25 and recorder.forgotten == 1, (
        "short batches go the direct way; the first masks are new"
    )
    assert all(torch.equal(masks[name], same[name]) for name in masks) and masks
    for name, value in wanted.items():  # the learning rate has another rounding
        assert torch.allclose(value, found[name], atol=1e-5), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("criterion", ["magnitude", "obert"])
def test_replayed_steps_train_as_direct_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, criterion: str) -> None:
    one = prepared(tmp_path)
    assert one.recipe.prune
    whole = replace(one.recipe.prune.training, gradient_accumulation=1)
    schedule = replace(one.recipe.prune, criterion=criterion, update_every=3, end=0.6, training=whole, fisher=FISHER)
    replayed, masks, recorder = trained(one, tmp_path / "replayed", schedule, 40)
    assert recorder._recorded and not recorder._failed  # type: ignore[attr-defined]
    monkeypatch.setattr(stepping.Loop, "can_be_recorded", property(lambda _loop: False))
    direct, same, _ = trained(one, tmp_path / "direct", schedule, 40)
    assert all((masks[name] == same[name]).float().mean() > 0.99 for name in masks)
    for name, value in direct.items():
        assert torch.allclose(value, replayed[name], atol=1e-3), name
