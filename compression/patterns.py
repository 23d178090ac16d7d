"""In which shape weights may go (single ones, blocks of four, N of M), and what each pruning costs to masks."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig

from compression.recipe import RecipeError, n_of_m

_BLOCK = 4


@dataclass(frozen=True)
class Pattern:
    """Cuts a matrix [out, in] into groups of `size` neighbours; of a group, one of `sets` of its members goes at once.

    Neighbours are inputs of one output, or outputs of one input where the pattern runs `down` the columns, as the
    engine's blocks_4x1 do (docs/engine.md).
    """

    name: str
    size: int
    sets: tuple[tuple[int, ...], ...]
    down: bool = False

    @property
    def most(self) -> float:
        """The sparsity when every group has lost a set."""
        return len(self.sets[0]) / self.size

    def check(self, length: int) -> None:
        """Raise RecipeError where a row (or column) of `length` weights cannot be cut into groups."""
        if length % self.size:
            side = "outputs" if self.down else "inputs"
            raise RecipeError(
                f"'prune.pattern' is {self.name!r}; it needs matrices whose {side} are a multiple of {self.size}, "
                f"this model has one with {length}"
            )

    def group(self, matrix: Tensor) -> Tensor:
        """Return the groups [groups, size] of a matrix [out, in]. Raises RecipeError as `check` does."""
        lines = matrix.T if self.down else matrix
        self.check(lines.shape[1])
        return lines.reshape(-1, self.size)

    def ungroup(self, groups: Tensor, shape: torch.Size) -> Tensor:
        """Return the matrix of `shape` whose groups these are."""
        return (groups.view(shape[1], shape[0]).T if self.down else groups.view(shape)).contiguous()


def pattern_of(name: str) -> Pattern:
    """Return the pattern of a recipe: `unstructured`, `1x4`, `4x1` or N:M, e.g. `2:4` (keep 2 of 4 neighbours)."""
    kept = n_of_m(name)
    if kept:
        n, m = kept
        return Pattern(name, m, tuple(itertools.combinations(range(m), m - n)))
    if name == "unstructured":
        return Pattern(name, 1, ((0,),))
    return Pattern(name, _BLOCK, (tuple(range(_BLOCK)),), down=name == "4x1")


def check_pattern(name: str, config: PretrainedConfig) -> None:
    """Raise RecipeError where the encoder's matrices, with sides hidden and ffn, cannot be cut into groups."""
    pattern = pattern_of(name)
    ffn = config.intermediate_size if config.model_type == "bert" else config.hidden_dim
    for length in (config.hidden_size, ffn):
        pattern.check(length)


def select_masks(
    costs: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], pattern: Pattern, scope: str, sparsity: float
) -> dict[str, Tensor]:
    """Return the masks [out, in] that reach `sparsity` at the least cost; True survives.

    `costs` [groups, sets] is what it costs to drop each set of each group. A group offers its cheapest set; the
    ceil(sparsity / most * groups) cheapest groups lose it, of each matrix or, with scope `global`, of all together. So
    gradual N:M bends one group after another to the pattern, first those that lose least. Of equal costs the earlier
    goes first, so the masks are a function of the costs alone.
    """
    pools = [[*costs]] if scope == "global" else [[name] for name in costs]
    masks = {}
    for pool in pools:
        offers = {name: costs[name].min(dim=1) for name in pool}
        lengths = [len(costs[name]) for name in pool]
        count = min(math.ceil(sparsity / pattern.most * sum(lengths)), sum(lengths))
        dropped = lowest(torch.cat([offers[name].values for name in pool]), count)
        for name, drop in zip(pool, torch.split(dropped, lengths), strict=True):
            masks[name] = pattern.ungroup(~(drop[:, None] & _members(pattern, offers[name].indices)), shapes[name])
    return masks


def _members(pattern: Pattern, choice: Tensor) -> Tensor:
    """Return [groups, size]: which members the chosen set of each group holds."""
    table = torch.zeros(len(pattern.sets), pattern.size, dtype=torch.bool, device=choice.device)
    for row, members in enumerate(pattern.sets):
        table[row, list(members)] = True
    return table[choice]


def lowest(costs: Tensor, count: int) -> Tensor:
    """Return flags [n] of the `count` lowest costs; of equal ones the earlier. Several times faster than sorting."""
    if count == 0:
        return torch.zeros_like(costs, dtype=torch.bool)
    limit = costs.kthvalue(count).values
    below, equal = costs < limit, costs == limit
    return below | (equal & (equal.cumsum(0) <= count - below.sum()))


def gone_sets(mask: Tensor, pattern: Pattern) -> Tensor:
    """Return [groups, sets]: which sets a mask [out, in] has dropped already."""
    gone = pattern.group(~mask)
    return torch.stack([gone[:, list(members)].all(dim=1) for members in pattern.sets], dim=1)
