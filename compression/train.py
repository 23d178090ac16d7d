"""The one training loop, step after step: judged, logged, saved, and resumable at any moment with the same result."""

import json
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from compression import failures, files, processes, prune
from compression.batches import plan_batches
from compression.failures import TrainingError as TrainingError
from compression.loop import LOG_EVERY, Loop, Stage, lengths_of, open_loop, seed_everything

# A kill costs about this much work: the state is written after as many seconds, or after so many times the seconds that
# writing takes (2 % of the time), whichever is longer. When it is written changes nothing in the result.
SAVE_SECONDS = 60.0
SAVE_COST = 50.0
# Besides its end, each stage is judged at these shares of its steps, where the caller gives a judge.
JUDGED_AT = (0.25, 0.5, 0.75)


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
        loop.stop = stop
        for step in range(first, len(plan)):
            with _explained(stage, step, folder):
                figures = loop.step(step, plan[step], stop=stop.number > 0)
            bar.update()
            loop.minutes = (monotonic() - began) / 60
            asked = figures.pop("stop") > 0
            _report(loop, step, figures, bar, folder)
            due = monotonic() - saved >= pause and step + 1 < len(plan)
            if asked or (due and loop.is_checked(step)):
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
    return plan_batches(lengths_of(stage.windows), training.batch_size, training.epochs, stage.seed, training.steps)


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
        loop.sparsity = prune.mask_sparsity(loop.masks)
        if loop.recorder:
            loop.record()
        loop.minutes = float(state["minutes"])
    processes.main_only(lambda: drop_metrics(folder, loop.stage.name, step))
    return step
