"""One optimizer step and what it needs: forward, loss, backward, step, re-mask."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from transformers import PreTrainedModel

from compression import processes, prune
from compression.criteria import add_movement
from compression.encode import IGNORED, Window
from compression.failures import GO_ON, InterruptedTrainingError, StopRequest, TrainingError
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
from compression.replay import Recorder
from compression.schedules import learning_rate, wanted_sparsity
from compression.surgeon import Patient, operate

LOG_EVERY = 10


@dataclass(frozen=True)
class Stage:
    """Everything one run of the loop needs besides the model.

    `masks` locks a pattern; `schedule` makes the loop find one as it goes; neither trains a dense model. `teacher`
    gives the logits to distil from, and hidden states where they are compared; a `live_teacher` computes them from the
    batch alone. `judge` scores the model as it is, for the log. `plan` holds the window numbers of every batch where
    they are not those of `plan_batches`. `language_loss` takes the place of task loss and teacher. `record` asks for
    steps to be recorded and replayed on a GPU.
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
    live_teacher: bool = False
    record: bool = False

    @property
    def compares_hidden(self) -> bool:
        """Whether the distance from the teacher's hidden states is a part of the loss."""
        if self.language_loss:
            return self.language_loss.compares_hidden
        return self.teacher is not None and self.distillation is not None and self.distillation.hidden > 0


@dataclass
class Loop:
    """The moving parts of a run: what a checkpoint must hold. `stop` is looked at where a step takes long."""

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
    sparsity: float = field(init=False)
    recorder: Recorder | None = None
    stop: StopRequest = field(default_factory=StopRequest)
    latest: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Count the zeros once: they change with the masks alone."""
        self.sparsity = prune.mask_sparsity(self.masks)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""
        return bool(self.accelerator.is_main_process)

    @property
    def can_be_recorded(self) -> bool:
        """Whether steps shall be recorded, and are the same kernels every time: see `replay`.

        They are not where several processes or parts make one, float16 is scaled by what it overflowed, movement is
        added up or which tokens are masked changes sizes.
        """
        stage, accelerator = self.stage, self.accelerator
        return (
            stage.record
            and accelerator.device.type == "cuda"
            and accelerator.num_processes == 1
            and stage.training.gradient_accumulation == 1
            and accelerator.scaler is None
            and stage.language_loss is None
            and not (stage.schedule and stage.schedule.criterion == "movement")
            and (stage.teacher is None or stage.live_teacher)
        )

    def record(self) -> None:
        """Replay steps from now on; the learning rate becomes a tensor, for it is read where it was recorded."""
        self.recorder = Recorder(self._recorded_step)
        for group in self.optimizer.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]), device=self.accelerator.device)
            group["capturable"] = True

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
            if self.recorder:
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        parts = processes.take_parts(numbers, training.gradient_accumulation)
        batches = [collate([stage.windows[i] for i in part], self.accelerator.device) for part in parts]
        found = [self._counts(batch) for batch in batches]
        counted = LanguageLoss.COUNTED if stage.language_loss else COUNTED
        totals = processes.add_up({key: sum(count[key] for count in found) for key in counted})
        if self.recorder and len(numbers) == training.batch_size:
            sums = self.recorder(batches[0])
            if not self.latest or self.is_checked(step) or stop:
                self.latest = self._checked(dict(zip(self._keys, sums.tolist(), strict=True)), step, rate)
            return {**self.latest, "stop": float(stop), "learning_rate": rate, "sparsity": self.sparsity}
        sums = torch.zeros(len(self._keys), device=self.accelerator.device)
        for part, batch, count in zip(parts, batches, found, strict=True):
            shares = {key: count[key] / max(1.0, total) for key, total in totals.items()}
            loss, values = self._loss(batch, part, shares)
            self.accelerator.backward(loss)
            sums += torch.stack([values.get(key, loss.new_zeros(())) for key in self._keys])
        # The one place where a step waits for a GPU.
        figures = processes.add_up({**dict(zip(self._keys, sums.tolist(), strict=True)), "stop": stop})
        self._checked(figures, step, rate)
        processes.add_gradients(self.model.parameters())
        self._optimize()
        return {**figures, "learning_rate": rate, "sparsity": self.sparsity}

    def is_checked(self, step: int) -> bool:
        """Whether the figures after this step are its own, so that its weights are known to be good to save."""
        return self.recorder is None or step % LOG_EVERY == 0 or step + 1 == self.steps

    @property
    def _keys(self) -> tuple[str, ...]:
        """Names of the figures of a step: the same in every process, one without a window adds zeros."""
        return ("loss", "task_loss", "teacher_loss", *(["hidden_loss"] if self.stage.compares_hidden else []))

    def _checked(self, figures: dict[str, float], step: int, rate: float) -> dict[str, float]:
        if not np.isfinite(figures["loss"]):
            raise TrainingError(
                f"{self.stage.name}: loss is {figures['loss']} at step {step}; lower the learning rate ({rate:g}) or "
                f"raise warmup ({self.stage.training.warmup:g}) in the recipe and start in another run folder; what "
                "was saved is kept"
            )
        return figures

    def _optimize(self) -> None:
        """Take the gradients to new weights; none is left."""
        stage = self.stage
        prune.mask_gradients(stage.matrices, self.masks)
        self.accelerator.clip_grad_norm_(self.model.parameters(), stage.training.max_gradient_norm)
        if stage.schedule is not None and stage.schedule.criterion == "movement":
            add_movement(self.movement, stage.matrices)
        self.optimizer.step()
        self.optimizer.zero_grad()
        prune.apply_masks(stage.matrices, self.masks)

    def _recorded_step(self, batch: Batch) -> Tensor:
        """Do a whole step on a whole batch, without waiting for the GPU; return its figures by `_keys`."""
        self.optimizer.zero_grad()  # a recording that failed half-way leaves gradients that no kernel wrote
        loss, values = self._loss(batch, (), dict.fromkeys(COUNTED, 1.0))
        self.accelerator.backward(loss)
        self._optimize()
        return torch.stack([values.get(key, loss.new_zeros(())).detach() for key in self._keys])

    def _counts(self, batch: Batch) -> dict[str, int]:
        language = self.stage.language_loss
        return language.counts(batch) if language else counts(self.stage.task, batch)

    def _loss(
        self, batch: Batch, numbers: Sequence[int], shares: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what a part of the batch adds to the loss, and what to log; `shares` are of the global batch."""
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
            return task, {"loss": task.detach(), "task_loss": task.detach()}
        teacher = (
            distillation_loss(stage.task, logits, taught.logits, batch, distillation.temperature)
            * shares["teacher_loss"]
        )
        loss = distillation.task * task + distillation.teacher * teacher
        figures = {"task_loss": task.detach(), "teacher_loss": teacher.detach()}
        if stage.compares_hidden:
            distance = hidden_distance(output.hidden, taught.hidden, batch.attended) * shares["hidden_loss"]
            loss = loss + distillation.hidden * distance
            figures["hidden_loss"] = distance.detach()
        return loss, {"loss": loss.detach(), **figures}

    def _update_masks(self, step: int) -> None:
        settings = self.stage.schedule
        wanted = wanted_sparsity(step, self.steps, settings) if settings else None
        if settings is None or wanted is None:
            return
        matrices, before = self.stage.matrices, self.masks
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
        self.sparsity = prune.mask_sparsity(self.masks)
        if self.recorder:
            self._keep_in_place(before)

    def _keep_in_place(self, before: prune.Masks) -> None:
        """Put the new masks where recorded steps read the old ones; without old ones nothing can be recorded yet."""
        if before.keys() != self.masks.keys():
            assert self.recorder is not None
            self.recorder.forget()
            return
        for name, mask in before.items():
            mask.copy_(self.masks[name])
        self.masks = before

    def _patient(self) -> Patient:
        stage, device = self.stage, self.accelerator.device

        # The labels' likelihood says nothing of texts without any: a gradient of few labels is mostly noise.
        labelled = _labelled(stage.windows)
        lengths = lengths_of(stage.windows)

        def loss(numbers: Sequence[int]) -> Tensor:
            # The matrices may take hours. Several processes stop together, after the step.
            if self.stop.number and self.accelerator.num_processes == 1:
                what = "stopped while its Fisher matrices were measured; what was saved before is kept"
                raise InterruptedTrainingError(f"{stage.name}: {what}: {GO_ON}", self.stop.number)
            batch = collate([stage.windows[labelled[i]] for i in numbers], device)
            with self.accelerator.autocast():
                if stage.language_loss:
                    return stage.language_loss.without_teacher()(Body(self.model), batch)[0]
                logits = output_of(self.model, batch).logits.float()
            return task_loss(stage.task, logits, batch)

        return Patient(self.model, stage.matrices, loss, [lengths[i] for i in labelled], self.accelerator)


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
    loop = Loop(model, wrapped, accelerator.prepare(optimizer), accelerator, stage, masks, steps)
    if loop.can_be_recorded:
        loop.record()
    return loop


def lengths_of(windows: Sequence[Window]) -> list[int]:
    """Tokens of every window; a text's are known without making its windows."""
    return windows.lengths.tolist() if isinstance(windows, MaskedWindows) else [len(window.ids) for window in windows]


def _labelled(windows: Sequence[Window]) -> Sequence[int]:
    """Numbers of the windows that have a label; all of a text, whose masks are its labels."""
    if isinstance(windows, MaskedWindows):
        return range(len(windows))
    return [number for number, window in enumerate(windows) if (window.targets != IGNORED).any()]


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
