"""The one training loop: forward, loss, backward, step, re-mask; resumable at any moment with the same result."""

import json
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from compression import prune
from compression.batches import plan_batches
from compression.criteria import add_movement
from compression.encode import Window
from compression.language import Body, LanguageLoss
from compression.masking import MaskedWindows
from compression.objective import Batch, collate, distillation_loss, logits_of, task_loss
from compression.recipe import Distillation, Prune, Training
from compression.schedules import cyclic_rate, rewinding_factor, wanted_sparsity
from compression.surgeon import Patient, operate

# A kill costs at most this many steps; writing a checkpoint takes as long as one or two of them.
SAVE_EVERY = 100
LOG_EVERY = 10


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and why. The last checkpoint is kept."""


@dataclass(frozen=True)
class Stage:
    """Everything one run of the loop needs besides the model.

    `masks` locks a pattern; `schedule` makes the loop find one as it goes; neither trains a dense model.
    `teacher` gives the logits to distil from, by window number. `plan` holds the window numbers of every batch where
    they are not those of `plan_batches`. `language_loss` takes the place of task loss and teacher.
    """

    name: str
    task: str
    training: Training
    seed: int
    windows: Sequence[Window]
    matrices: Mapping[str, nn.Linear]
    masks: prune.Masks
    schedule: Prune | None = None
    distillation: Distillation | None = None
    teacher: Callable[[Sequence[int], Batch], Tensor] | None = None
    plan: Sequence[Sequence[int]] | None = None
    language_loss: LanguageLoss | None = None


def train(model: PreTrainedModel, stage: Stage, folder: Path) -> prune.Masks:
    """Train `model` in place and return the masks at the end.

    `folder` receives metrics.jsonl (a line every few steps) and, while training runs, state.pt, from which a later
    call with the same arguments goes on. Raises TrainingError when the loss is not finite.
    """
    training = stage.training
    AcceleratorState._reset_state()  # accelerate keeps the first precision for ever; ours belongs to the stage
    accelerator = Accelerator(mixed_precision=training.mixed_precision, cpu=not torch.cuda.is_available())
    plan = stage.plan if stage.plan is not None else _plan(stage)
    seed_everything(stage.seed)
    trained = Body(model) if stage.language_loss else model
    wrapped, optimizer = accelerator.prepare(trained, make_optimizer(model, training))
    masks = {name: mask.to(accelerator.device) for name, mask in stage.masks.items()}
    loop = _Loop(model, wrapped, optimizer, accelerator, stage, masks, len(plan))
    first = _restore(loop, folder)
    began = monotonic() - 60 * loop.minutes
    model.train()
    prune.apply_masks(stage.matrices, loop.masks)
    bar = tqdm(
        total=len(plan), initial=first, desc=stage.name, disable=not accelerator.is_main_process, mininterval=1.0
    )
    for step in range(first, len(plan)):
        figures = loop.step(step, plan[step])
        bar.update()
        last = step + 1 == len(plan)
        if step % LOG_EVERY == 0 or last:
            bar.set_postfix({key: f"{figures[key]:.3g}" for key in ("loss", "sparsity", "learning_rate")})
            append_metrics(folder, {"stage": stage.name, "step": step, **figures})
        loop.minutes = (monotonic() - began) / 60
        if (step + 1) % SAVE_EVERY == 0 and not last:
            _save(loop, folder, step + 1)
    bar.close()
    append_metrics(folder, {"stage": stage.name, "minutes": round(loop.minutes, 2)})
    return loop.masks


def _plan(stage: Stage) -> list[list[int]]:
    training = stage.training
    return plan_batches(_lengths(stage.windows), training.batch_size, training.epochs, stage.seed, training.steps)


def _lengths(windows: Sequence[Window]) -> list[int]:
    """Tokens of every window; a text's are known without making its windows."""
    return windows.lengths.tolist() if isinstance(windows, MaskedWindows) else [len(window.ids) for window in windows]


@dataclass
class _Loop:
    """The moving parts of a run: what a checkpoint must hold."""

    model: PreTrainedModel
    wrapped: Any
    optimizer: Any
    accelerator: Accelerator
    stage: Stage
    masks: prune.Masks
    steps: int
    minutes: float = 0.0
    dropped: prune.Masks = field(default_factory=dict)
    movement: dict[str, Tensor] = field(default_factory=dict)

    def step(self, step: int, numbers: Sequence[int]) -> dict[str, float]:
        """Do one optimizer step on the windows with these numbers and return the figures to log."""
        stage, training = self.stage, self.stage.training
        self._update_masks(step)
        rate = learning_rate(step, self.steps, training, stage.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        figures = {"loss": 0.0, "task_loss": 0.0, "teacher_loss": 0.0}
        for part in np.array_split(np.asarray(numbers), min(training.gradient_accumulation, len(numbers))):
            share = len(part) / len(numbers)
            batch = collate([stage.windows[i] for i in part], self.accelerator.device)
            loss, parts = self._loss(batch, part.tolist())
            self.accelerator.backward(loss * share)
            for key, value in parts.items():
                figures[key] = figures.get(key, 0.0) + value * share
        if not np.isfinite(figures["loss"]):
            raise TrainingError(
                f"{stage.name}: loss is {figures['loss']} at step {step}; lower the learning rate ({rate:g})"
            )
        prune.mask_gradients(stage.matrices, self.masks)
        self.accelerator.clip_grad_norm_(self.wrapped.parameters(), training.max_gradient_norm)
        if stage.schedule is not None and stage.schedule.criterion == "movement":
            add_movement(self.movement, stage.matrices)
        self.optimizer.step()
        self.optimizer.zero_grad()
        prune.apply_masks(stage.matrices, self.masks)
        return {**figures, "learning_rate": rate, "sparsity": prune.mask_sparsity(self.masks)}

    def _loss(self, batch: Batch, numbers: Sequence[int]) -> tuple[Tensor, dict[str, float]]:
        stage, distillation = self.stage, self.stage.distillation
        if stage.language_loss:
            with self.accelerator.autocast():
                return stage.language_loss(self.wrapped, batch)
        with self.accelerator.autocast():
            logits = logits_of(self.wrapped, batch).float()
            taught = stage.teacher(numbers, batch) if stage.teacher else None
        task = task_loss(stage.task, logits, batch)
        if distillation is None or taught is None:
            return task, {"loss": task.item(), "task_loss": task.item()}
        teacher = distillation_loss(stage.task, logits, taught, batch, distillation.temperature)
        loss = distillation.task * task + distillation.teacher * teacher
        return loss, {"loss": loss.item(), "task_loss": task.item(), "teacher_loss": teacher.item()}

    def _update_masks(self, step: int) -> None:
        settings = self.stage.schedule
        wanted = wanted_sparsity(step, self.steps, settings) if settings else None
        if settings is None or wanted is None:
            return
        matrices = self.stage.matrices
        if settings.criterion == "obert":
            self.masks = operate(self._patient(), self.masks, wanted, settings, (self.stage.seed, step))
        elif settings.reselect_until:
            prune.put_back(matrices, self.dropped)
            self.masks = prune.choose_masks(matrices, {}, wanted, settings, {})
            competing = step < round(settings.reselect_until * self.steps)
            self.dropped = prune.set_aside(matrices, self.masks) if competing else {}
        else:
            self.masks = prune.choose_masks(matrices, self.masks, wanted, settings, self.movement)
        prune.apply_masks(matrices, self.masks)

    def _patient(self) -> Patient:
        stage, device = self.stage, self.accelerator.device

        def loss(numbers: Sequence[int]) -> Tensor:
            batch = collate([stage.windows[i] for i in numbers], device)
            with self.accelerator.autocast():
                if stage.language_loss:
                    return stage.language_loss.without_teacher()(Body(self.model), batch)[0]
                logits = logits_of(self.model, batch).float()
            return task_loss(stage.task, logits, batch)

        return Patient(self.model, stage.matrices, loss, _lengths(stage.windows), self.accelerator)


def learning_rate(step: int, steps: int, training: Training, pruning: Prune | None = None) -> float:
    """Linear warm-up over the first share of the steps, then the training's schedule.

    "linear": down to zero after the last step. "cyclic": see `cyclic_rate`. "rewinding": see `rewinding_factor`;
    `pruning` says when masks are updated.
    """
    warmup = training.warmup * steps
    if training.schedule == "cyclic":
        highest, epoch = training.learning_rate, step * training.epochs / steps
        rate = cyclic_rate(epoch, training.rewind_epochs, training.epochs, highest, training.lowest_rate)
        return min(rate, highest * (step + 1) / (warmup + 1))
    if step < warmup:
        return training.learning_rate * (step + 1) / (warmup + 1)
    if training.schedule == "rewinding" and pruning is not None:
        window = round(pruning.end * steps)
        return training.learning_rate * rewinding_factor(step, steps, warmup, window, pruning.update_every)
    return training.learning_rate * (steps - step) / (steps - warmup)


def make_optimizer(model: PreTrainedModel, training: Training) -> torch.optim.Optimizer:
    """AdamW; no weight decay on biases and LayerNorm, as in BERT; embeddings are frozen where the recipe says so."""
    model.base_model.embeddings.requires_grad_(not training.freeze_embeddings)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=training.learning_rate)


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch: a run is a function of its recipe and data."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def append_metrics(folder: Path, line: Mapping[str, object]) -> None:
    """Append a line to metrics.jsonl of a run folder."""
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_metrics(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of metrics.jsonl; a last line cut short by a kill is left out."""
    path = folder / "metrics.jsonl"
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                return


def drop_metrics(folder: Path, stage: str, from_step: int) -> None:
    """Remove a stage's lines from a step on: they are written again when the run goes on from its checkpoint."""
    kept = [line for line in read_metrics(folder) if line["stage"] != stage or line.get("step", from_step) < from_step]
    temporary = folder / "metrics.jsonl.tmp"
    temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    temporary.replace(folder / "metrics.jsonl")


def save_atomically(value: object, path: Path) -> None:
    """torch.save to a temporary name, then rename: a kill leaves the old file or the new one, never half."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        torch.save(value, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _save(loop: _Loop, folder: Path, step: int) -> None:
    if not loop.accelerator.is_main_process:
        return
    state = {
        "stage": loop.stage.name,
        "step": step,
        "model": loop.model.state_dict(),
        "optimizer": loop.optimizer.state_dict(),
        "masks": loop.masks,
        "dropped": loop.dropped,
        "movement": loop.movement,
        "minutes": loop.minutes,
        "random": torch.get_rng_state(),
    }
    save_atomically(state, folder / "state.pt")


def _restore(loop: _Loop, folder: Path) -> int:
    path = folder / "state.pt"
    device = loop.accelerator.device
    state = torch.load(path, map_location=device, weights_only=True) if path.is_file() else None
    if state is None or state["stage"] != loop.stage.name:
        drop_metrics(folder, loop.stage.name, 0)
        return 0
    loop.model.load_state_dict(state["model"])
    loop.optimizer.load_state_dict(state["optimizer"])
    loop.masks = state["masks"]
    loop.dropped = state["dropped"]
    loop.movement = state["movement"]
    loop.minutes = float(state["minutes"])
    torch.set_rng_state(state["random"].cpu())
    step = int(state["step"])
    drop_metrics(folder, loop.stage.name, step)
    return step
