"""Where the teacher's answers come from: its logits computed once and kept, or all computed as the student goes."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from tqdm import tqdm
from transformers import PreTrainedModel

from compression import processes
from compression.batches import plan_evaluation
from compression.checkpoint import CheckpointError, load_finetuned, model_labels
from compression.encode import Window
from compression.evaluate import torch_predictor
from compression.examples import Example, TextExample
from compression.files import remove, replacing
from compression.metrics import headline
from compression.objective import Batch, Output, output_of
from compression.recipe import Task

log = logging.getLogger("sparselane")

# Logits are written after so many batches: some seconds of a small model, minutes of a large one.
PART_BATCHES = 16

Teacher = Callable[[Sequence[int], Batch], Output]


def load_teacher(checkpoint: str, task: Task) -> PreTrainedModel:
    """Load a checkpoint that is fine-tuned already, as published; its outputs must be the recipe's, in its order.

    Names like LABEL_0 say nothing and are taken in the recipe's order, see `doubt_teacher`. Raises CheckpointError for
    other names, and what `load_finetuned` raises.
    """
    model, outputs = load_finetuned(checkpoint, task.name)
    wanted = model_labels(task)
    unnamed = tuple(f"LABEL_{i}" for i in range(len(wanted)))
    if tuple(map(str.lower, outputs)) != tuple(map(str.lower, wanted)) and outputs != unnamed:
        raise CheckpointError(
            f"teacher {checkpoint!r} answers {list(outputs)}, the recipe {list(wanted)}: give task.labels in its order"
        )
    return model


def doubt_teacher(checkpoint: str, task: Task, examples: Sequence[Example], lines: Iterable[Mapping[str, Any]]) -> None:
    """Warn of a teacher that, by its quick look on `examples` in the `lines` of metrics.jsonl, knows nothing.

    That is: no more than who always says the most frequent class, or no right answer in other tasks.
    """
    metric, least = headline(task), 0.0
    if task.name == "text-classification" and not task.multi_label:
        labels = Counter(example.label for example in examples if isinstance(example, TextExample))
        metric, least = "accuracy", labels.most_common(1)[0][1] / len(examples)
    for line in lines:
        if line["stage"] == "teacher" and "quick" in line and (found := line["quick"][metric]) <= least:
            log.warning(
                "warning: teacher %r as it is has %s %.4f on %d validation examples, knowing nothing gives %.4f: are "
                "its outputs in another order than task.labels? What it says is what the sparse model will learn",
                *(checkpoint, metric, found, len(examples), least),
            )


def live_teacher(model: PreTrainedModel, *, hidden: bool = False) -> Teacher:
    """Run the teacher on every batch: right when each window is seen once, or its `hidden` states are asked for."""
    model.train(False).requires_grad_(False)

    @torch.no_grad()
    def teach(_numbers: Sequence[int], batch: Batch) -> Output:
        found = output_of(model, batch, hidden=hidden)
        return Output(found.logits.float(), found.hidden)

    return teach


def kept_teacher(model: PreTrainedModel, windows: Sequence[Window], path: Path) -> Teacher:
    """Run the teacher once over all windows and keep its logits in `path`: right when windows are seen several times.

    The file is used again by later stages and by resumed runs; it holds float32 [windows, C] or [tokens, C].
    """
    _write_logits(model, windows, path)
    kept = load_file(path)["logits"]
    per_token = len(kept) != len(windows)
    ends = np.cumsum([len(window.ids) for window in windows])

    def teach(numbers: Sequence[int], batch: Batch) -> Output:
        if not per_token:
            return Output(torch.from_numpy(kept[np.asarray(numbers)]).to(batch.ids.device))
        logits = np.zeros((*batch.ids.shape, kept.shape[1]), np.float32)
        for row, number in enumerate(numbers):
            length = len(windows[number].ids)
            logits[row, :length] = kept[ends[number] - length : ends[number]]
        return Output(torch.from_numpy(logits).to(batch.ids.device))

    return teach


def _write_logits(model: PreTrainedModel, windows: Sequence[Window], path: Path) -> None:
    """Compute the logits, every process its share of the batches, and let the main process write them.

    A large model takes hours: they are written part by part beside `path`, and a run that was stopped goes on there.
    """
    at_once = processes.windows_at_once()
    plan = plan_evaluation([len(w.ids) for w in windows], at_once)
    parts = [plan[i : i + PART_BATCHES] for i in range(0, len(plan), PART_BATCHES)]
    folder = path.with_suffix(f".parts-{at_once}")  # a run may go on where other batches are made
    files = [folder / f"{number}.safetensors" for number in range(len(parts))]
    left = [number for number, file in enumerate(files) if not (path.is_file() or file.is_file())]
    here = processes.state()
    here.wait_for_everyone()  # nobody writes before everybody has looked
    predict = torch_predictor(model)
    total = sum(len(parts[number]) for number in left)
    with tqdm(total=total, desc="teacher", disable=not (left and here.is_main_process), mininterval=1.0) as bar:
        for number in left:
            mine: dict[int, np.ndarray] = {}
            for batch in parts[number][here.process_index :: here.num_processes]:
                for window, values in zip(batch, predict([windows[i] for i in batch]), strict=True):
                    mine[window] = values.astype(np.float32)
                bar.update(here.num_processes)
            logits = processes.collect(mine)
            if logits is not None:
                folder.mkdir(exist_ok=True)
                with replacing(files[number]) as temporary:
                    save_file({str(window): values for window, values in logits.items()}, temporary)
    processes.main_only(lambda: _join_parts(files, len(windows), path))


def _join_parts(files: Sequence[Path], windows: int, path: Path) -> None:
    """Write the logits of all `files` as one array, in the order of the windows; the files go."""
    if not path.is_file():
        logits = {name: values for file in files for name, values in load_file(file).items()}
        ordered = [logits[str(number)] for number in range(windows)]
        with replacing(path) as temporary:
            save_file({"logits": np.stack(ordered) if ordered[0].ndim == 1 else np.concatenate(ordered)}, temporary)
    remove(files[0].parent)
