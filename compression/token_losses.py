"""Cross-entropy and divergence over a vocabulary, with their gradient, a few rows at a time.

Logits [N, V] of 30,522 words are far larger than a cache, and what autograd does with them in some twenty passes is a
third of a language model's step on a CPU. Here every row is read once: its losses and its gradient, whose formula is
short, are done while it is in the cache.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Rows at a time: on a CPU some float32 copies of these fit its second-level cache; a GPU wants few kernels instead.
ROWS = {"cpu": 8, "cuda": 2048}


def token_losses(
    logits: Tensor,
    answers: Tensor | None,
    targets: Tensor,
    asked: NDArray[np.bool_],
    weights: tuple[float, float],
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Return two sums over rows, float32 [2], and the gradient of their weighted sum by `logits`, in its type.

    The first is the cross-entropy of the rows that are `asked` [N] with their `targets` int64 [N]; the second, where
    there are a teacher's `answers` [N, V], T^2 KL(softmax(answers / T) || softmax(logits / T)) of all rows (Hinton et
    al., arXiv 1503.02531). `weights` are of the first and of the second. All sums are float32.
    """
    size = ROWS[logits.device.type]
    sums = torch.zeros(2, device=logits.device)
    slope = torch.empty_like(logits)
    for start in range(0, len(logits), size):
        rows = slice(start, start + size)
        taught = None if answers is None else answers[rows].float()
        places = np.flatnonzero(asked[rows])
        if taught is None and not len(places):
            slope[rows] = 0
            continue
        scores = logits[rows].float()
        scores = scores - scores.amax(dim=-1, keepdim=True)  # from here on no exponential overflows
        found, powers = torch.zeros_like(scores), None
        if taught is not None:
            powers = _divergence(scores, taught, temperature, weights[1], sums[1], found)
        if len(places):
            known = powers if temperature == 2 else None
            _cross_entropy(scores, known, targets[rows], places, weights[0], sums[0], found)
        slope[rows] = found
    return sums, slope


def _divergence(
    scores: Tensor, taught: Tensor, temperature: float, weight: float, total: Tensor, slope: Tensor
) -> Tensor:
    """Add to the sum and the slope; return exp(scores / T). The slope is T (softmax(scores / T) - softmax(taught / T)).

    KL = sum p (log p - log q), and log p - log q = taught / T - scores / T + what the row's sums make of it.
    """
    scaled = scores / temperature
    expected = taught.sub(taught.amax(dim=-1, keepdim=True)).div_(temperature)
    powers, shares = scaled.exp(), expected.exp()
    found_sum, expected_sum = powers.sum(dim=-1, keepdim=True), shares.sum(dim=-1, keepdim=True)
    shares.div_(expected_sum)
    apart = torch.vdot(shares.flatten(), expected.sub_(scaled).flatten())
    total += (apart + (found_sum.log() - expected_sum.log()).sum()) * temperature**2
    slope.addcmul_(powers, weight * temperature / found_sum).sub_(shares, alpha=weight * temperature)
    return powers


def _cross_entropy(
    scores: Tensor,
    powers: Tensor | None,
    targets: Tensor,
    places: NDArray[np.int64],
    weight: float,
    total: Tensor,
    slope: Tensor,
) -> None:
    """Add to the sum and the slope; `powers` is exp(scores / 2) where that is known. The slope is softmax - one-hot."""
    every = len(places) == len(scores)
    at = None if every else torch.from_numpy(places).to(scores.device)

    def chosen(tensor: Tensor) -> Tensor:
        return tensor if at is None else tensor.index_select(0, at)

    # An exponential costs more than all else here: exp(x) is the square of exp(x / 2), and 2 is the usual temperature.
    exponentials = chosen(scores).exp() if powers is None else chosen(powers).square()
    sums, wanted = exponentials.sum(dim=-1, keepdim=True), chosen(targets).unsqueeze(1)
    total += (sums.log() - chosen(scores).gather(1, wanted)).sum()
    exponentials.mul_(weight / sums).scatter_add_(1, wanted, torch.full_like(sums, -weight))
    if at is None:
        slope += exponentials
    else:
        slope.index_add_(0, at, exponentials)
