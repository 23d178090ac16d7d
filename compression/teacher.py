"""Where the teacher's logits come from: computed once and kept, or computed as the student goes."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from compression.batches import plan_evaluation
from compression.checkpoint import CheckpointError, load_finetuned, model_labels
from compression.encode import Window
from compression.evaluate import torch_predictor
from compression.objective import Batch, logits_of
from compression.recipe import Task

Teacher = Callable[[Sequence[int], Batch], Tensor]


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


def live_teacher(model: PreTrainedModel) -> Teacher:
    """Run the teacher on every batch: right when each window is seen once."""
    model.train(False).requires_grad_(False)

    @torch.no_grad()
    def teach(_numbers: Sequence[int], batch: Batch) -> Tensor:
        return logits_of(model, batch).float()

    return teach


def kept_teacher(model: PreTrainedModel, windows: Sequence[Window], path: Path, *, batch_size: int = 32) -> Teacher:
    """Run the teacher once over all windows and keep its logits in `path`: right when windows are seen several times.

    The file is used again by later stages and by resumed runs; it holds float32 [windows, C] or [tokens, C].
    """
    if not path.is_file():
        _write_logits(model, windows, path, batch_size)
    kept = load_file(path)["logits"]
    per_token = len(kept) != len(windows)
    ends = np.cumsum([len(window.ids) for window in windows])

    def teach(numbers: Sequence[int], batch: Batch) -> Tensor:
        if not per_token:
            return torch.from_numpy(kept[np.asarray(numbers)]).to(batch.ids.device)
        logits = np.zeros((*batch.ids.shape, kept.shape[1]), np.float32)
        for row, number in enumerate(numbers):
            length = len(windows[number].ids)
            logits[row, :length] = kept[ends[number] - length : ends[number]]
        return torch.from_numpy(logits).to(batch.ids.device)

    return teach


def _write_logits(model: PreTrainedModel, windows: Sequence[Window], path: Path, batch_size: int) -> None:
    predict = torch_predictor(model)
    logits: list[np.ndarray] = [np.empty(0)] * len(windows)
    for batch in tqdm(plan_evaluation([len(w.ids) for w in windows], batch_size), desc="teacher", mininterval=1.0):
        for number, values in zip(batch, predict([windows[i] for i in batch]), strict=True):
            logits[number] = values.astype(np.float32)
    joined = np.stack(logits) if logits[0].ndim == 1 else np.concatenate(logits)
    temporary = path.with_name(path.name + ".tmp")
    save_file({"logits": joined}, temporary)
    temporary.replace(path)
