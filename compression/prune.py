"""Which weights go: the cubic schedule, the magnitude criterion, and masks as a plain dict of tensors."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

Masks = dict[str, Tensor]


def cubic_sparsity(progress: float, final: float) -> float:
    """Return the sparsity at `progress` in [0, 1] of the pruning interval, rising from 0 to `final`.

    s(p) = s_f (1 - (1 - p)^3): Zhu and Gupta, "To prune, or not to prune" (arXiv 1710.01878), section 3, with
    s_i = 0 as in Prune Once for All (arXiv 2111.05754). Progress outside [0, 1] is clamped.
    """
    progress = min(max(progress, 0.0), 1.0)
    return final * (1.0 - (1.0 - progress) ** 3)


def magnitude_mask(weight: Tensor, sparsity: float) -> Tensor:
    """Return the boolean mask [out, in] that drops the ceil(sparsity * n) weights of smallest magnitude.

    Of equal magnitudes the earlier in row order goes first, so the mask is a function of the weights alone.
    """
    drop = math.ceil(sparsity * weight.numel())
    order = weight.detach().abs().flatten().argsort(stable=True)
    mask = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
    mask[order[:drop]] = False
    return mask.view_as(weight)


def magnitude_masks(matrices: Mapping[str, nn.Linear], sparsity: float) -> Masks:
    """Prune each matrix to the same sparsity by magnitude (per layer, not global)."""
    return {name: magnitude_mask(matrix.weight, sparsity) for name, matrix in matrices.items()}


@torch.no_grad()
def apply_masks(matrices: Mapping[str, nn.Linear], masks: Mapping[str, Tensor]) -> None:
    """Set pruned weights to exactly zero."""
    for name, mask in masks.items():
        matrices[name].weight.masked_fill_(~mask, 0.0)


@torch.no_grad()
def mask_gradients(matrices: Mapping[str, nn.Linear], masks: Mapping[str, Tensor]) -> None:
    """Drop the gradients of pruned weights, so that neither clipping nor the optimizer's moments see them."""
    for name, mask in masks.items():
        gradient = matrices[name].weight.grad
        if gradient is not None:
            gradient.masked_fill_(~mask, 0.0)


def sparsity(matrices: Mapping[str, nn.Linear]) -> dict[str, float]:
    """Return the share of exact zeros of each matrix."""
    return {name: float((matrix.weight == 0).float().mean()) for name, matrix in matrices.items()}


def overall_sparsity(matrices: Mapping[str, nn.Linear]) -> float:
    """Return the share of exact zeros over all matrices together."""
    zeros = sum(int((matrix.weight == 0).sum()) for matrix in matrices.values())
    return zeros / sum(matrix.weight.numel() for matrix in matrices.values())
