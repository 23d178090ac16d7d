"""What it costs to lose a weight: each criterion is a function from a matrix and its statistics to costs of groups."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from compression.fisher import removal_costs
from compression.patterns import Pattern

# (weight [out, in], statistics of this matrix or None, pattern) -> cost [groups, sets] of dropping a set of a group.
Criterion = Callable[[Tensor, Tensor | None, Pattern], Tensor]


def magnitude_costs(weight: Tensor, _statistics: Tensor | None, pattern: Pattern) -> Tensor:
    """Sum of |w|, as in Prune Once for All (arXiv 2111.05754)."""
    return _sums(weight.detach().abs(), pattern)


def movement_costs(weight: Tensor, statistics: Tensor | None, pattern: Pattern) -> Tensor:
    """Sum of the `statistics` [out, in] that `add_movement` gathered: what moves towards zero goes first."""
    return _sums(torch.zeros_like(weight) if statistics is None else statistics, pattern)


def second_order_costs(weight: Tensor, statistics: Tensor | None, pattern: Pattern) -> Tensor:
    """Rise of the loss by oBERT (arXiv 2203.07259); `statistics` is the finished Fisher matrix of `fisher`."""
    assert statistics is not None, "the surgeon measures before it cuts"
    return removal_costs(weight.detach(), statistics, pattern)


CRITERIA: dict[str, Criterion] = {
    "magnitude": magnitude_costs,
    "movement": movement_costs,
    "obert": second_order_costs,
}


@torch.no_grad()
def add_movement(scores: dict[str, Tensor], matrices: Mapping[str, nn.Linear]) -> None:
    """Add -w * gradient of every weight to `scores` in place; call it once a step, before the optimizer's.

    Movement pruning, Sanh et al., arXiv 2005.07683: with hard top-v masks the score of a weight is the sum
    of -w dL/dw over the steps, large where training moves it away from zero. There pruned weights keep their value and
    may return; here they are zero, so their score stands still and they stay out.
    """
    for name, matrix in matrices.items():
        gradient = matrix.weight.grad
        if gradient is not None:
            score = scores.setdefault(name, torch.zeros_like(matrix.weight))
            score.addcmul_(matrix.weight, gradient, value=-1.0)


def _sums(importance: Tensor, pattern: Pattern) -> Tensor:
    groups = pattern.group(importance)
    return torch.stack([groups[:, list(members)].sum(dim=1) for members in pattern.sets], dim=1)
