"""Where the teacher's answers come from: its logits computed once and kept, or all computed as the student goes."""

from collections.abc import Callable, Sequence
from pathlib import Path

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
from compression.files import replacing
from compression.objective import Batch, Output, output_of
from compression.recipe import Task

Teacher = Callable[[Sequence[int], Batch], Output]


def load_teacher(checkpoint: str, task: Task) -> PreTrainedModel:
    """Load a checkpoint that is fine-tuned already, as published; its outputs must be the recipe's, in its order.

    Names like LABEL_0 say nothing and are taken in the recipe's order. Raises CheckpointError for other names, and
    what `load_finetuned` raises.
    """
    model, outputs = load_finetuned(checkpoint, task.name)
    wanted = model_labels(task)
    unnamed = tuple(f"LABEL_{i}" for i in range(len(wanted)))
    if tuple(map(str.lower, outputs)) != tuple(map(str.lower, wanted)) and outputs != unnamed:
        raise CheckpointError(
            f"teacher {checkpoint!r} answers {list(outputs)}, the recipe {list(wanted)}: give task.labels in its order"
        )
    return model


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
    """Compute the logits, every process its share of the batches, and let the main process write them."""
    exists = path.is_file()
    here = processes.state()
    here.wait_for_everyone()  # nobody writes before everybody has looked
    if exists:
        return
    predict = torch_predictor(model)
    mine: dict[int, np.ndarray] = {}
    batches = plan_evaluation([len(w.ids) for w in windows], processes.windows_at_once())[
        here.process_index :: here.num_processes
    ]
    for batch in tqdm(batches, desc="teacher", disable=not here.is_main_process, mininterval=1.0):
        for number, values in zip(batch, predict([windows[i] for i in batch]), strict=True):
            mine[number] = values.astype(np.float32)
    logits = processes.collect(mine)
    if logits is not None:
        ordered = [logits[number] for number in range(len(windows))]
        with replacing(path) as temporary:
            save_file({"logits": np.stack(ordered) if ordered[0].ndim == 1 else np.concatenate(ordered)}, temporary)
    here.wait_for_everyone()
