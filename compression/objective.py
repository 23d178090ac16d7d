"""What training minimizes: the task's cross-entropy, the divergence from the teacher, the distance from its states."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from compression.checkpoint import CheckpointError
from compression.encode import IGNORED, Window

# On a GPU a new shape costs milliseconds until all kernels for it are chosen, and more where steps are recorded; these
# are few, and aligned.
SHAPE_MULTIPLE = 16


@dataclass(frozen=True)
class Batch:
    """B windows padded to T tokens: `ids`, `types`, `attended` [B, T]; `targets` [B, 1], [B, 2] or [B, T].

    Floating-point `targets` [B, C] are multi-label: 1 where a label holds. `lengths` int64 [B] and `given`, which of
    the targets are not IGNORED, stay in the host's memory: who counts there need not wait for a GPU.
    """

    ids: Tensor
    types: Tensor
    attended: Tensor
    targets: Tensor
    lengths: NDArray[np.int64]
    given: NDArray[np.bool_]


def collate(windows: Sequence[Window], device: torch.device) -> Batch:
    """Pad windows on the right to the longest of them, on a GPU to a multiple of SHAPE_MULTIPLE.

    Padded targets are IGNORED.
    """
    multiple = 1 if device.type == "cpu" else SHAPE_MULTIPLE
    longest = -(-max(len(window.ids) for window in windows) // multiple) * multiple
    multi_label = windows[0].targets.dtype == np.float32
    per_token = len(windows[0].targets) == len(windows[0].ids) and not multi_label
    ids = np.zeros((3, len(windows), longest), np.int64)
    shape = (len(windows), longest if per_token else len(windows[0].targets))
    targets = np.full(shape, IGNORED, np.float32 if multi_label else np.int64)
    for row, window in enumerate(windows):
        length = len(window.ids)
        ids[0, row, :length], ids[1, row, :length], ids[2, row, :length] = window.ids, window.types, 1
        targets[row, : len(window.targets)] = window.targets
    return batch_of(ids, targets, device)


def batch_of(ids: NDArray[np.int64], targets: NDArray[np.int64] | NDArray[np.float32], device: torch.device) -> Batch:
    """Put a batch on a device; `ids` [3, B, T] are ids and types of tokens, then 1 where there is one."""
    tokens, types, attended = _moved(ids, device)  # at once: a copy to a GPU costs as much as a kernel
    given = targets != IGNORED
    return Batch(tokens, types, attended, _moved(targets, device), ids[2].sum(axis=1), given)


def _moved(array: NDArray[np.int64] | NDArray[np.float32], device: torch.device) -> Tensor:
    """Put an array on a device; to a GPU from pinned memory, else the copy waits there for all work before it."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True)
class Output:
    """What a model says of a batch; the student's is compared with the teacher's.

    `logits`: [B, classes] for text classification, [B, T, tags] for NER, [B, T, 2] for question answering.
    `hidden`: [B, T, H] of the embeddings, then of each layer; empty where nobody asked for them.
    """

    logits: Tensor
    hidden: tuple[Tensor, ...] = ()


def output_of(model: PreTrainedModel, batch: Batch, *, hidden: bool = False) -> Output:
    """Run a task model on a batch, in the precision that it is in."""
    inputs = {"input_ids": batch.ids, "attention_mask": _attention_mask(model, batch.attended)}
    if getattr(model.config, "type_vocab_size", 0):
        inputs["token_type_ids"] = batch.types
    found = model(**inputs, output_hidden_states=hidden)
    states = tuple(found.hidden_states) if hidden else ()
    if "start_logits" in found:
        return Output(torch.stack((found.start_logits, found.end_logits), dim=-1), states)
    return Output(found.logits, states)


def _attention_mask(model: PreTrainedModel, attended: Tensor) -> Tensor:
    """Return the mask to give to transformers: as it is on a CPU; on a GPU as attention wants it, [B, 1, 1, T].

    Transformers, who would make that of it, asks the GPU first whether there is any padding, and waits.
    """
    if attended.device.type == "cpu":
        return attended
    mask = attended.bool()[:, None, None, :]
    if model.config._attn_implementation == "sdpa":
        return mask
    lowest = torch.finfo(torch.float32).min
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, lowest)


def task_loss(task: str, logits: Tensor, batch: Batch) -> Tensor:
    """Mean cross-entropy with the targets: over labelled examples or tokens, or starts and ends of answers.

    For multi-label targets the mean, over examples and labels, of each label's binary cross-entropy. Without any labels
    0.
    """
    if task == "question-answering":
        # Padding may not be chosen: softmax runs over the tokens of the window.
        masked = logits.masked_fill(batch.attended.unsqueeze(-1) == 0, float("-inf"))
        losses = [functional.cross_entropy(masked[..., side], batch.targets[:, side]) for side in (0, 1)]
        return (losses[0] + losses[1]) / 2
    # Not reduction="mean": a part of a batch may hold no label, and 0 / 0 would spoil the whole step.
    given = batch.targets != IGNORED
    if batch.targets.is_floating_point():
        wanted = batch.targets.clamp(min=0.0)
        total = (functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none") * given).sum()
    else:
        targets = batch.targets.flatten()
        total = functional.cross_entropy(
            logits.reshape(len(targets), -1), targets, ignore_index=IGNORED, reduction="sum"
        )
    return total / given.sum().clamp(min=1)


def distillation_loss(task: str, student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)): Hinton et al., arXiv 1503.02531, as in Prune Once for All.

    Mean over examples (classification), over tokens that are not padding (NER), over start and end distributions
    on the tokens of the window (question answering), over examples and labels with sigmoid for softmax (multi-label).
    """
    if task == "question-answering":
        padding = (batch.attended == 0).unsqueeze(-1)
        # A finite floor: -inf minus -inf would be NaN inside the divergence. exp(-1e4 / T) is 0 in float32.
        student, teacher = (
            logits.masked_fill(padding, -1e4).transpose(1, 2).flatten(0, 1) for logits in (student, teacher)
        )
    elif task == "token-classification":
        # Weights, not a choice of tokens: choosing waits for the GPU to say how many there are.
        apart = functional.kl_div(
            functional.log_softmax(student / temperature, dim=-1),
            functional.log_softmax(teacher / temperature, dim=-1),
            reduction="none",
            log_target=True,
        )
        return (apart.sum(dim=-1) * _token_weights(batch.attended)).sum() * temperature**2
    elif batch.targets.is_floating_point():
        # sigmoid(z) is the first part of softmax((z, 0)).
        student, teacher = (torch.stack((z, torch.zeros_like(z)), dim=-1).flatten(0, 1) for z in (student, teacher))
    divergence = functional.kl_div(
        functional.log_softmax(student / temperature, dim=-1),
        functional.log_softmax(teacher / temperature, dim=-1),
        reduction="batchmean",
        log_target=True,
    )
    return divergence * temperature**2


def hidden_distance(student: Sequence[Tensor], teacher: Sequence[Tensor], attended: Tensor) -> Tensor:
    """Mean squared distance of hidden states, each scaled to length 1: Patient Knowledge Distillation
    (arXiv 1908.09355, section 3.2), over all tokens that are not padding and all layers of the student.

    `student`, `teacher`: [B, T, H] of the embeddings, then of each layer. Layer i of the student's S is compared with
    layer i * L / S of the teacher's L, rounded: the last with the last. Raises CheckpointError for another H.
    """
    check_same_width(student[0].shape[-1], teacher[0].shape[-1])
    layers, depth = len(student) - 1, len(teacher) - 1
    # All layers in one tensor: a tenth of the kernels.
    found = torch.stack([student[i] for i in range(1, layers + 1)])
    wanted = torch.stack([teacher[round(i * depth / layers)] for i in range(1, layers + 1)])
    distances = (functional.normalize(found, dim=-1) - functional.normalize(wanted, dim=-1)).square().sum(dim=-1)
    return (distances * _token_weights(attended)).sum() / layers


def _token_weights(attended: Tensor) -> Tensor:
    """Return [B, T]: 1 / tokens where there is a token, 0 where there is padding."""
    real = attended.float()
    return real / real.sum()


def check_same_width(student: int, teacher: int) -> None:
    """Raise CheckpointError where hidden states of two widths would be compared."""
    if student != teacher:
        raise CheckpointError(
            f"the student is {student} wide, its teacher {teacher}: hidden states of another width cannot be compared; "
            "set distillation.hidden = 0"
        )


COUNTED = ("task_loss", "teacher_loss", "hidden_loss")


def counts(task: str, batch: Batch) -> dict[str, int]:
    """Over how many examples or tokens each loss is a mean: what a part of a batch weighs in the whole.

    `task_loss`: targets that are not IGNORED. `teacher_loss`: tokens that are not padding (NER), else examples.
    `hidden_loss`: tokens that are not padding.
    """
    tokens = int(batch.lengths.sum())
    taught = tokens if task == "token-classification" else len(batch.ids)
    return {"task_loss": int(batch.given.sum()), "teacher_loss": taught, "hidden_loss": tokens}
