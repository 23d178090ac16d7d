"""The second-order pruning step: measure the Fisher matrices, choose what goes, let the survivors make up for it.

The Optimal BERT Surgeon (oBERT), Kurtic et al., arXiv 2203.07259; the arithmetic is in `fisher`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from compression import fisher, prune
from compression.patterns import Pattern, pattern_of
from compression.recipe import Fisher, Prune


@dataclass(frozen=True)
class Patient:
    """What the surgeon works on: `loss` gives the task's mean loss on the windows with these numbers.

    The task's loss and not the distillation loss: the empirical Fisher matrix is made of gradients of the labels'
    likelihood, and a student that still equals its teacher has no distillation loss. `lengths`: tokens of each window.
    """

    model: PreTrainedModel
    matrices: Mapping[str, nn.Linear]
    loss: Callable[[Sequence[int]], Tensor]
    lengths: Sequence[int]
    accelerator: Accelerator


def operate(
    patient: Patient, masks: prune.Masks, sparsity: float, settings: Prune, seed: tuple[int, ...]
) -> prune.Masks:
    """Prune to `sparsity` in place, in `recomputations` equal parts with a new Fisher matrix each; return the masks.

    A function of the weights, the data and `seed`, the same in every process. Memory: see `fisher`.
    Raises RecipeError when the damping is too small.
    """
    pattern = pattern_of(settings.pattern)
    before = prune.mask_sparsity(masks)
    parts = settings.fisher.recomputations
    for part in range(1, parts + 1):
        batches = sample_batches(patient.lengths, settings.fisher, (*seed, part))
        fishers = measure(patient, masks, settings.fisher, pattern, batches)
        target = before + (sparsity - before) * part / parts
        chosen = prune.choose_masks(patient.matrices, masks, target, settings, fishers)
        _cut(patient.matrices, fishers, masks, chosen, pattern)
        masks = chosen
        del fishers  # before the next ones are made: they are most of the memory
    return masks


def measure(
    patient: Patient, masks: prune.Masks, settings: Fisher, pattern: Pattern, batches: Sequence[Sequence[int]]
) -> dict[str, Tensor]:
    """Return the damped Fisher matrix of every matrix from one gradient a batch, without dropout.

    Each process takes every n-th batch; then the sums of all are added up, so that all hold the same.
    """
    accelerator, matrices = patient.accelerator, patient.matrices
    sums = {name: fisher.empty_fisher(matrix.weight, settings.block) for name, matrix in matrices.items()}
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    training = patient.model.training
    patient.model.train(False)
    for numbers in tqdm(mine, desc="fisher", leave=False, disable=not accelerator.is_main_process, mininterval=1.0):
        loss = patient.loss(numbers)
        gradients = torch.autograd.grad(loss, [matrix.weight for matrix in matrices.values()])
        for name, gradient in zip(matrices, gradients, strict=True):
            fisher.add_gradient(sums[name], gradient, masks.get(name), pattern)
    patient.model.train(training)
    for name in sums:
        total = accelerator.reduce(sums[name], reduction="sum")
        sums[name] = fisher.finish_fisher(total, len(batches), settings.damping)
    return sums


def sample_batches(lengths: Sequence[int], settings: Fisher, seed: tuple[int, ...]) -> list[list[int]]:
    """Draw `gradients` batches of window numbers; no window comes twice before all came once.

    Batches hold windows of similar length, for little padding.
    """
    random = np.random.default_rng(seed)
    wanted = settings.gradients * settings.batch_size
    order = np.concatenate([random.permutation(len(lengths)) for _ in range(-(-wanted // len(lengths)))])[:wanted]
    by_length = order[np.argsort(np.asarray(lengths)[order], kind="stable")]
    batches: list[list[int]] = by_length.reshape(settings.gradients, settings.batch_size).tolist()
    return batches


@torch.no_grad()
def _cut(
    matrices: Mapping[str, nn.Linear],
    fishers: Mapping[str, Tensor],
    before: prune.Masks,
    after: prune.Masks,
    pattern: Pattern,
) -> None:
    for name, matrix in matrices.items():
        kept = after[name]
        dropped = before[name] & ~kept if name in before else ~kept
        matrix.weight.copy_(fisher.compensated(matrix.weight, fishers[name], dropped, kept, pattern))
