"""The one training loop: forward, loss, backward, step, re-mask; resumable at any moment with the same result."""

import json
import os
import random
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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

from compression import failures, files, processes, prune
from compression.batches import plan_batches
from compression.criteria import add_movement
from compression.encode import Window
from compression.failures import TrainingError as TrainingError
from compression.language import Body, LanguageLoss
from compression.masking import MaskedWindows
from compression.objective import (
    COUNTED,
    Batch,
    Output,
    collate,
    counts,
    distillation_loss,
    hidden_distance,
    output_of,
    task_loss,
)
from compression.recipe import Distillation, Prune, Training
from compression.schedules import learning_rate, wanted_sparsity
from compression.surgeon import Patient, operate

# A kill costs about this much work: the state is written after as many seconds, or after so many times the seconds that
# writing takes (2 % of the time), whichever is longer. When it is written changes nothing in the result.
SAVE_SECONDS = 60.0
SAVE_COST = 50.0
LOG_EVERY = 10
# Besides its end, each stage is judged at these shares of its steps, where the caller gives a judge.
JUDGED_AT = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Stage:
    """Everything one run of the loop needs besides the model.

    `masks` locks a pattern; `schedule` makes the loop find one as it goes; neither trains a dense model. `teacher`
    gives the logits to distil from, and hidden states where they are compared; `judge` scores the model as
    it is, for the log. `plan` holds the window numbers of every batch where they are not those of `plan_batches`.
    `language_loss` takes the place of task loss and teacher.
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
    teacher: Callable[[Sequence[int], Batch], Output] | None = None
    plan: Sequence[Sequence[int]] | None = None
    language_loss: LanguageLoss | None = None
    judge: Callable[[], float] | None = None

    @property
    def compares_hidden(self) -> bool:
        """Whether the distance from the teacher's hidden states is a part of the loss."""
        if self.language_loss:
            return self.language_loss.compares_hidden
        return self.teacher is not None and self.distillation is not None and self.distillation.hidden > 0


def train(model: PreTrainedModel, stage: Stage, folder: Path) -> prune.Masks:
    """Train `model` in place and return the masks at the end.

    `folder` receives metrics.jsonl (a line every few steps) and, while training runs, state.pt, from which a later
    call with the same arguments goes on. Several processes share every batch; the main one writes.

    Raises:
        TrainingError: the loss is not finite, memory or disk is full. InterruptedTrainingError: a signal asked to stop.
    """
    plan = stage.plan if stage.plan is not None else _plan(stage)
    seed_everything(stage.seed)
    loop = open_loop(model, stage, len(plan))
    first = _restore(loop, folder)
    began = saved = monotonic()
    began -= 60 * loop.minutes
    pause = SAVE_SECONDS
    prune.apply_masks(stage.matrices, loop.masks)
    with (
        tqdm(total=len(plan), initial=first, desc=stage.name, disable=not loop.is_main, mininterval=1.0) as bar,
        failures.stop_signals(launched=processes.state().num_processes > 1) as stop,
    ):
        for step in range(first, len(plan)):
            with _explained(stage, step, folder):
                figures = loop.step(step, plan[step], stop=stop.number > 0)
            bar.update()
            loop.minutes = (monotonic() - began) / 60
            asked = figures.pop("stop") > 0
            _report(loop, step, figures, bar, folder)
            if asked or (monotonic() - saved >= pause and step + 1 < len(plan)):
                seconds = _save(loop, folder, step + 1)
                saved, pause = monotonic(), max(SAVE_SECONDS, SAVE_COST * seconds)
            if asked:
                processes.state().wait_for_everyone()  # the main process writes
                message = f"{stage.name}: stopped after {step + 1} of {len(plan)} steps; {kept(folder)}"
                raise failures.InterruptedTrainingError(message, stop.number or signal.SIGTERM)
    if loop.is_main:
        append_metrics(folder, {"stage": stage.name, "minutes": round(loop.minutes, 2)})
    return loop.masks


def _plan(stage: Stage) -> list[list[int]]:
    training = stage.training
    return plan_batches(_lengths(stage.windows), training.batch_size, training.epochs, stage.seed, training.steps)


def _lengths(windows: Sequence[Window]) -> list[int]:
    """Tokens of every window; a text's are known without making its windows."""
    return windows.lengths.tolist() if isinstance(windows, MaskedWindows) else [len(window.ids) for window in windows]


def open_loop(model: PreTrainedModel, stage: Stage, steps: int) -> "Loop":
    """Put a model on this process's device, in train mode, with an optimizer and the stage's precision."""
    processes.state()  # accelerate makes its process group at the first call, and ours has its own timeout
    AcceleratorState._reset_state()  # accelerate keeps the first precision for ever; ours belongs to the stage
    accelerator = Accelerator(mixed_precision=stage.training.mixed_precision, cpu=not torch.cuda.is_available())
    optimizer = make_optimizer(model, stage.training)
    # "Evaluation" spares the model the wrapper for several processes: `processes` adds the gradients up.
    wrapped = accelerator.prepare_model(Body(model) if stage.language_loss else model, evaluation_mode=True)
    model.train()
    masks = {name: mask.to(accelerator.device) for name, mask in stage.masks.items()}
    return Loop(model, wrapped, accelerator.prepare(optimizer), accelerator, stage, masks, steps)


def _report(loop: "Loop", step: int, figures: dict[str, float], bar: Any, folder: Path) -> None:
    """Log the figures of a step, with the judge's where it is due, to the progress bar and to metrics.jsonl."""
    judge = loop.stage.judge
    due = judge is not None and step + 1 in {round(share * loop.steps) for share in JUDGED_AT}
    if not loop.is_main or not (due or step % LOG_EVERY == 0 or step + 1 == loop.steps):
        return
    if judge is not None and due:
        figures = {**figures, "metric": judge()}
        loop.model.train()
    shown = ("loss", "sparsity", "learning_rate", "metric")
    bar.set_postfix({key: f"{figures[key]:.3g}" for key in shown if key in figures})
    append_metrics(folder, {"stage": loop.stage.name, "step": step, **figures})


@contextmanager
def _explained(stage: Stage, step: int, folder: Path) -> Iterator[None]:
    """Say what to lower when memory runs out, and what is kept."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, TrainingError) or not failures.is_out_of_memory(error):
            raise
        training = stage.training
        raise TrainingError(
            f"{stage.name}: out of memory at step {step}: {training.batch_size} windows a batch in "
            f"{training.gradient_accumulation} part(s) over {processes.state().num_processes} process(es). Raise "
            f"gradient_accumulation of this stage in the recipe (the result is the same, and {kept(folder)}), or lower "
            f"its batch_size or task.window and start in another run folder. {str(error).splitlines()[0][:200]}"
        ) from error


def kept(folder: Path) -> str:
    """Say what of the running stage is on disk."""
    path = folder / "state.pt"
    if not path.is_file():
        return "the stage starts again, finished ones are kept"
    return f"{path} is kept: {failures.GO_ON}"


@dataclass
class Loop:
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

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""
        return bool(self.accelerator.is_main_process)

    def step(self, step: int, numbers: Sequence[int], *, stop: bool = False) -> dict[str, float]:
        """Do one optimizer step on the windows with these numbers and return the figures to log.

        Each loss is a mean over all examples or tokens of the global batch, however it is cut into parts: with several
        processes or accumulated gradients the step is that of one process, up to the order of the sums and to dropout,
        whose random numbers are a function of (seed, step, process). `stop` says that this process was asked to stop;
        the figures say how many were.
        """
        stage, training = self.stage, self.stage.training
        seed_step(stage.seed, step)
        self._update_masks(step)
        rate = learning_rate(step, self.steps, training, stage.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        parts = processes.take_parts(numbers, training.gradient_accumulation)
        batches = [collate([stage.windows[i] for i in part], self.accelerator.device) for part in parts]
        found = [self._counts(batch) for batch in batches]
        counted = LanguageLoss.COUNTED if stage.language_loss else COUNTED
        totals = processes.add_up({key: sum(count[key] for count in found) for key in counted})
        # The same keys in every process: one without a window adds zeros.
        figures = {"loss": 0.0, "task_loss": 0.0, "teacher_loss": 0.0}
        if stage.compares_hidden:
            figures["hidden_loss"] = 0.0
        for part, batch, count in zip(parts, batches, found, strict=True):
            shares = {key: count[key] / max(1.0, total) for key, total in totals.items()}
            loss, values = self._loss(batch, part, shares)
            self.accelerator.backward(loss)
            for key, value in values.items():
                figures[key] += value
        figures = processes.add_up({**figures, "stop": stop})
        if not np.isfinite(figures["loss"]):
            raise TrainingError(
                f"{stage.name}: loss is {figures['loss']} at step {step}; lower the learning rate ({rate:g}) or raise "
                f"warmup ({training.warmup:g}) in the recipe and start in another run folder; what was saved is kept"
            )
        processes.add_gradients(self.model.parameters())
        prune.mask_gradients(stage.matrices, self.masks)
        self.accelerator.clip_grad_norm_(self.model.parameters(), training.max_gradient_norm)
        if stage.schedule is not None and stage.schedule.criterion == "movement":
            add_movement(self.movement, stage.matrices)
        self.optimizer.step()
        self.optimizer.zero_grad()
        prune.apply_masks(stage.matrices, self.masks)
        return {**figures, "learning_rate": rate, "sparsity": prune.mask_sparsity(self.masks)}

    def _counts(self, batch: Batch) -> dict[str, int]:
        language = self.stage.language_loss
        return language.counts(batch) if language else counts(self.stage.task, batch)

    def _loss(
        self, batch: Batch, numbers: Sequence[int], shares: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, float]]:
        """Return what a part of the batch adds to the loss; `shares` are its shares of the global batch."""
        stage, distillation = self.stage, self.stage.distillation
        if stage.language_loss:
            with self.accelerator.autocast():
                return stage.language_loss(self.wrapped, batch, shares)
        with self.accelerator.autocast():
            output = output_of(self.wrapped, batch, hidden=stage.compares_hidden)
            taught = stage.teacher(numbers, batch) if stage.teacher else None
        logits = output.logits.float()
        task = task_loss(stage.task, logits, batch) * shares["task_loss"]
        if distillation is None or taught is None:
            return task, {"loss": task.item(), "task_loss": task.item()}
        teacher = (
            distillation_loss(stage.task, logits, taught.logits, batch, distillation.temperature)
            * shares["teacher_loss"]
        )
        loss = distillation.task * task + distillation.teacher * teacher
        figures = {"task_loss": task.item(), "teacher_loss": teacher.item()}
        if stage.compares_hidden:
            distance = hidden_distance(output.hidden, taught.hidden, batch.attended) * shares["hidden_loss"]
            loss = loss + distillation.hidden * distance
            figures["hidden_loss"] = distance.item()
        return loss, {"loss": loss.item(), **figures}

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
                logits = output_of(self.model, batch).logits.float()
            return task_loss(stage.task, logits, batch)

        return Patient(self.model, stage.matrices, loss, _lengths(stage.windows), self.accelerator)


def make_optimizer(model: PreTrainedModel, training: Training) -> torch.optim.Optimizer:
    """AdamW; no weight decay on biases and LayerNorm, as in BERT; embeddings are frozen where the recipe says so."""
    model.base_model.embeddings.requires_grad_(not training.freeze_embeddings)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=training.learning_rate, fused=True)  # on a CPU a fifth of the time


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch: a run is a function of its recipe and data."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def seed_step(seed: int, step: int) -> None:
    """Seed torch for one step of this process: dropout needs no state that a checkpoint would have to keep."""
    place = (seed, step, processes.state().process_index)
    torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))


def append_metrics(folder: Path, line: Mapping[str, object]) -> None:
    """Append a line to metrics.jsonl of a run folder; a line that a kill cut short is ended first."""
    with files.appending(folder / "metrics.jsonl") as file:
        file.write(json.dumps(line).encode() + b"\n")


def read_metrics(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of metrics.jsonl; a line cut short by a kill is left out."""
    path = folder / "metrics.jsonl"
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


def drop_metrics(folder: Path, stage: str, from_step: int) -> None:
    """Remove a stage's lines from a step on: they are written again when the run goes on from its checkpoint."""
    kept = [line for line in read_metrics(folder) if line["stage"] != stage or line.get("step", from_step) < from_step]
    with files.replacing(folder / "metrics.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")


def save_atomically(value: object, path: Path) -> None:
    """torch.save to a temporary name, then rename: a kill leaves the old file or the new one, never half.

    Raises TrainingError when the disk is full.
    """
    with files.replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(value, file)
        file.flush()
        os.fsync(file.fileno())


def _save(loop: Loop, folder: Path, step: int) -> float:
    """Write the state from which `step` can be done; return the seconds it took."""
    began = monotonic()
    if loop.is_main:
        scaler = loop.accelerator.scaler
        state = {
            "stage": loop.stage.name,
            "step": step,
            "model": loop.model.state_dict(),
            "optimizer": loop.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else {},
            "masks": loop.masks,
            "dropped": loop.dropped,
            "movement": loop.movement,
            "minutes": loop.minutes,
        }
        save_atomically(state, folder / "state.pt")
    return monotonic() - began


def _restore(loop: Loop, folder: Path) -> int:
    """Go back to the state that was saved of this stage, if one was, and return the step to do next."""
    path = folder / "state.pt"
    state = torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else None
    if state is not None and state["stage"] != loop.stage.name:
        state = None
    step = int(state["step"]) if state else 0
    if state is not None:
        loop.model.load_state_dict(state["model"])
        loop.optimizer.load_state_dict(state["optimizer"])
        if loop.accelerator.scaler is not None:
            loop.accelerator.scaler.load_state_dict(state["scaler"])
        loop.masks, loop.dropped, loop.movement = (
            {name: tensor.to(loop.accelerator.device) for name, tensor in state[part].items()}
            for part in ("masks", "dropped", "movement")
        )
        loop.minutes = float(state["minutes"])
    processes.main_only(lambda: drop_metrics(folder, loop.stage.name, step))
    return step
