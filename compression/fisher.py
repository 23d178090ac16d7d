"""What second-order pruning knows of a matrix: block-diagonal empirical Fisher, cost of a group, compensating update.

The Optimal BERT Surgeon (oBERT), Kurtic et al., arXiv 2203.07259. The weights of a matrix stand in the order of their
pattern's groups and are cut into blocks of B; the Fisher matrix [blocks, B, B] in float32 takes 4 B bytes a weight
(B = 50: 17 GB for the 85 M of BERT-Base). All else works in chunks of a few tens of MB.

The paper keeps the inverse and updates it with every gradient (Woodbury / Sherman-Morrison). Here the sum of outer
products is kept and inverted once, chunk by chunk in float64: the same matrix, at half the memory traffic, without the
rounding of m updates, and a sum is what several processes can share.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from compression.patterns import Pattern
from compression.recipe import RecipeError

# Doubles in a chunk of blocks, 64 MB: large enough to be fast, small beside the Fisher matrix.
_CHUNK = 2**23


def empty_fisher(weight: Tensor, width: int) -> Tensor:
    """Return zeros [blocks, width, width] for a weight [out, in]; the last block is padded."""
    blocks = -(-weight.numel() // width)
    return torch.zeros(blocks, width, width, dtype=torch.float32, device=weight.device)


def add_gradient(fisher: Tensor, gradient: Tensor, mask: Tensor | None, pattern: Pattern) -> None:
    """Add g g^T of a gradient [out, in] in place. Pruned weights count as constants: their gradient is left out."""
    gradient = gradient.float() if mask is None else gradient.float() * mask
    flat = _blocks(pattern.group(gradient), fisher.shape[1])
    # Not baddbmm: on a CPU that takes up to thirteen times as long, for blocks of 16.
    fisher.addcmul_(flat.unsqueeze(2), flat.unsqueeze(1))


def finish_fisher(fisher: Tensor, gradients: int, damping: float) -> Tensor:
    """Return damping * I + 1/m sum g g^T, in place, from the sum over m `gradients`."""
    fisher.div_(gradients).diagonal(dim1=1, dim2=2).add_(damping)
    return fisher


@torch.no_grad()
def removal_costs(weight: Tensor, fisher: Tensor, pattern: Pattern) -> Tensor:
    """Return the rise of the loss [groups, sets] when a set Q of a group goes and all other weights adapt.

    w_Q^T [(F^-1)_QQ]^-1 w_Q / 2; w^2 / (2 F^-1_jj) for a single weight.

    Raises:
        RecipeError: a block of F is not positive definite in float32: too little damping for gradients of this size.
    """
    groups = pattern.group(weight)
    costs = torch.empty(len(groups), len(pattern.sets), dtype=torch.float32, device=weight.device)
    width = fisher.shape[1]
    per_block = width // pattern.size
    for first, part in _chunks(fisher):
        inverse = _inverse(part).view(-1, per_block, pattern.size, per_block, pattern.size)
        inverse = inverse.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).reshape(-1, pattern.size, pattern.size)
        begin = first * per_block
        weights = groups[begin : begin + len(inverse)].double()
        inverse = inverse[: len(weights)]  # without the padding of the last block
        for number, members in enumerate(pattern.sets):
            chosen = list(members)
            costs[begin : begin + len(weights), number] = _half_form(
                inverse[:, chosen][:, :, chosen], weights[:, chosen]
            )
    return costs


@torch.no_grad()
def compensated(weight: Tensor, fisher: Tensor, dropped: Tensor, kept: Tensor, pattern: Pattern) -> Tensor:
    """Return the weights [out, in] after the weights `dropped` went and the `kept` ones took over what they could.

    The minimum of the quadratic model of the loss: dw_S = (F_SS)^-1 F_SP w_P, which is the update of the paper,
    -F^-1 E_P^T [(F^-1)_PP]^-1 w_P, for all weights P of a block that go together (the paper adds up the updates of
    single groups; the same where a block loses one group).
    """
    width = fisher.shape[1]
    flat = _blocks(pattern.group(weight), width)
    going, staying = (_blocks(pattern.group(flags), width) for flags in (dropped, kept))
    result = torch.where(staying, flat, 0.0)
    if width > 1:  # a diagonal Fisher matrix has nothing to hand over
        for first, part in _chunks(fisher):
            chunk = slice(first, first + len(part))
            stays = staying[chunk].double()
            push = torch.einsum("bij,bj->bi", part, flat[chunk].double() * going[chunk]) * stays
            # Rows and columns of weights that do not stay become those of the identity: they decouple.
            among = part * stays.unsqueeze(1) * stays.unsqueeze(2) + torch.diag_embed(1.0 - stays)
            moved = torch.cholesky_solve(push.unsqueeze(2), _cholesky(among)).squeeze(2)
            result[chunk] += moved.float()
    return pattern.ungroup(result.flatten()[: weight.numel()], weight.shape).to(weight.dtype)


def _blocks(groups: Tensor, width: int) -> Tensor:
    flat = groups.flatten()
    padded: Tensor = functional.pad(flat, (0, -len(flat) % width))
    return padded.view(-1, width)


def _chunks(fisher: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Cut the blocks into chunks, each as (number of its first block, float64 [some, B, B])."""
    some = max(1, _CHUNK // fisher.shape[1] ** 2)
    for first in range(0, len(fisher), some):
        yield first, fisher[first : first + some].double()


def _half_form(inverse: Tensor, weights: Tensor) -> Tensor:
    """w^T A^-1 w / 2 for every A [groups, q, q] and w [groups, q]."""
    if weights.shape[1] == 1:
        return weights[:, 0].square() / (2.0 * inverse[:, 0, 0])
    solved: Tensor = torch.linalg.solve(inverse, weights)
    return (weights * solved).sum(dim=1) / 2.0


def _inverse(part: Tensor) -> Tensor:
    if part.shape[1] == 1:
        return part.reciprocal()
    # Not cholesky_inverse: on a GPU it takes the blocks one after another.
    whole = torch.eye(part.shape[1], dtype=part.dtype, device=part.device).expand_as(part)
    half = torch.linalg.solve_triangular(_cholesky(part), whole, upper=False)
    inverse: Tensor = half.mT @ half
    return inverse


def _cholesky(part: Tensor) -> Tensor:
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(part)
    if bool(failed.any()):
        largest = float(part.diagonal(dim1=1, dim2=2).max())
        # Sums of float32 products are off by about 1e-6 of their size in blocks of some tens of weights.
        raise RecipeError(
            f"'prune.fisher.damping' is too small: gradients reach a mean square of {largest:.3g}, whose rounding it "
            f"must outweigh; raise it to about {1e-6 * largest:.1g}"
        )
    return factor
