"""Rounding that trains: numbers are rounded, the gradient passes straight through (Bengio et al., arXiv 1308.3432)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
        return rounding(x)

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def straight_through(x: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    """Return `rounding(x)`, a new tensor of the same shape, whose gradient is that of x."""
    result: Tensor = _StraightThrough.apply(x, rounding)  # type: ignore[no-untyped-call]
    return result
