"""What a checkpoint is, read off its tensors: how many zeros each matrix has, and in which pattern they lie."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Fewer zeros than this are no pattern: a trained weight may be 0.0 by chance or by rounding to 16 bit.
FEWEST_ZEROS = 0.05
# A matrix counts as pruned in blocks when so much of what distinguishes blocks from chance is there: `find_pattern`.
BLOCKED = 0.8
# Patterns that keep N of every M neighbouring inputs, the strictest first: 1:2 also satisfies 2:4.
N_OF_M = ((1, 4), (1, 2), (2, 4), (4, 8))
# Of the groups of an N:M matrix at least this share keeps exactly N; independent zeros leave most with fewer or more.
FILLED = 0.5


@dataclass(frozen=True)
class Found:
    """One matrix: `sparsity` is its share of exact zeros, `pattern` is dense, unstructured, 1x4, 4x1, 4x4 or N:M.

    1x4 means four neighbouring inputs of one output (a piece of a row of [out, in]), 4x1 four neighbouring outputs of
    one input. Others name them the other way round: what counts here is where the zeros are.
    """

    name: str
    weights: int
    sparsity: float
    pattern: str


def find_patterns(matrices: Mapping[str, nn.Linear]) -> list[Found]:
    """Look at every matrix of a model, by artifact name."""
    return [
        Found(name, matrix.weight.numel(), float((matrix.weight == 0).float().mean()), find_pattern(matrix.weight))
        for name, matrix in matrices.items()
    ]


@torch.no_grad()
def find_pattern(weight: Tensor) -> str:
    """Name the pattern of the zeros of a matrix [out, in].

    dense: fewer than 5 % zeros. N:M: no group of M neighbouring inputs keeps more than N, at least half keep exactly
    N. Blocks: where a share s of the weights is zero, independent zeros leave s^4 of all blocks of four wholly zero,
    blocks leave s; blocks it is from (found - s^4) / (s - s^4) >= 0.8 on, in the direction where that is higher, 4x4
    when it is so in both. Anything else is unstructured.
    """
    zero = weight == 0
    share = float(zero.float().mean())
    if share < FEWEST_ZEROS or share == 1:
        return "dense" if share < 1 else "unstructured"
    for keep, group in N_OF_M:
        if weight.shape[1] % group == 0:
            kept = (~zero).view(weight.shape[0], -1, group).sum(dim=2)
            if int(kept.max()) <= keep and float((kept == keep).float().mean()) >= FILLED:
                return f"{keep}:{group}"
    rows, columns = _blockiness(zero, share), _blockiness(zero.T, share)
    if min(rows, columns) >= BLOCKED:
        return "4x4"
    if max(rows, columns) >= BLOCKED:
        return "1x4" if rows > columns else "4x1"
    return "unstructured"


def _blockiness(zero: Tensor, share: float) -> float:
    """Say where the share of wholly zero 1x4 blocks lies between chance (0) and blocks (1)."""
    if zero.shape[1] % 4:
        return 0.0
    whole = float(zero.reshape(zero.shape[0], -1, 4).all(dim=2).float().mean())
    return (whole - share**4) / (share - share**4)


def overall_pattern(found: list[Found]) -> str:
    """Name the pattern of all matrices together: the sparse ones' if they agree, else mixed; dense without any."""
    patterns = {matrix.pattern for matrix in found} - {"dense"}
    return patterns.pop() if len(patterns) == 1 else "mixed" if patterns else "dense"


def overall_sparsity(found: list[Found]) -> float:
    """Return the share of zeros of all matrices together."""
    return sum(matrix.weights * matrix.sparsity for matrix in found) / sum(matrix.weights for matrix in found)


def summary(found: list[Found]) -> Iterator[tuple[str, int, float, float, str]]:
    """Yield (kind of matrix, how many, lowest sparsity, highest, patterns) over the layers, for a table of few rows."""
    kinds: dict[str, list[Found]] = {}
    for matrix in found:
        kinds.setdefault(matrix.name.rsplit(".", 1)[-1], []).append(matrix)
    for kind, members in kinds.items():
        shares = [matrix.sparsity for matrix in members]
        counted = Counter(matrix.pattern for matrix in members)
        patterns = ", ".join(name if len(counted) == 1 else f"{name} ({n})" for name, n in counted.items())
        yield kind, len(members), min(shares), max(shares), patterns
