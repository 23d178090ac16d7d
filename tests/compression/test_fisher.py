"""The fast Fisher matrix, its costs and its update against dense algebra on quadratics of 20 to 24 weights."""

import numpy as np
import pytest
import torch
from torch import Tensor

from compression import fisher
from compression.patterns import Pattern, pattern_of
from compression.recipe import RecipeError

GRADIENTS = 30
DAMPING = 1e-2
SHAPE = torch.Size((4, 6))  # 24 weights; 1x4 does not fit its rows, see `shape_for`


def shape_for(pattern: Pattern) -> torch.Size:
    return SHAPE if pattern.down or pattern.size == 1 else torch.Size((6, 4))


def problem(seed: int, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Weights [out, in] and gradients [m, out, in]."""
    random = np.random.default_rng(seed)
    draw = random.standard_normal((GRADIENTS + 1, *shape)).astype(np.float32)
    return torch.from_numpy(draw[0]), torch.from_numpy(draw[1:])


def measured(gradients: Tensor, width: int, pattern: Pattern, mask: Tensor | None = None) -> Tensor:
    sums = fisher.empty_fisher(gradients[0], width)
    for gradient in gradients:
        fisher.add_gradient(sums, gradient, mask, pattern)
    return fisher.finish_fisher(sums, len(gradients), DAMPING)


def dense_fisher(gradients: Tensor, width: int, pattern: Pattern) -> Tensor:
    """The definition, [n, n] in double: lambda I + 1/m sum g g^T, zero outside the blocks; groups side by side."""
    flat = torch.stack([pattern.group(gradient).flatten() for gradient in gradients]).double()
    full = DAMPING * torch.eye(flat.shape[1], dtype=torch.float64) + flat.T @ flat / len(flat)
    block = torch.arange(flat.shape[1]) // width
    return full * (block[:, None] == block[None, :])


def rise_without(matrix: Tensor, weights: Tensor, gone: list[int]) -> tuple[float, Tensor]:
    """Minimize (v - w)^T F (v - w) / 2 with v zero at `gone`: the least rise of the loss and its v."""
    stays = [i for i in range(len(weights)) if i not in gone]
    best = torch.zeros_like(weights)
    pull = matrix[stays][:, gone] @ weights[gone]
    best[stays] = weights[stays] + torch.linalg.solve(matrix[stays][:, stays], pull)
    step = best - weights
    return float(step @ matrix @ step / 2), best


@pytest.mark.parametrize("width", [1, 4, 10, 24])
def test_the_inverse_is_the_one_of_the_papers_recursion(width: int) -> None:
    """Finv -= (Finv g)(Finv g)^T / (m + g^T Finv g), from I / lambda: arXiv 2203.07259."""
    pattern = pattern_of("unstructured")
    _, gradients = problem(0, SHAPE)
    inverse = torch.eye(24, dtype=torch.float64) / DAMPING
    same = torch.arange(24) // width
    inside = same[:, None] == same[None, :]
    for gradient in gradients.double().flatten(1):
        for block in range(int(same.max()) + 1):
            g = torch.where(same == block, gradient, 0.0)
            pushed = inverse @ g
            inverse = inverse - torch.outer(pushed, pushed) / (GRADIENTS + g @ pushed)
    found = fisher._inverse(measured(gradients, width, pattern).double())
    torch.testing.assert_close(torch.block_diag(*found)[:24, :24], inverse * inside, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", [4, 8, 12, 24, 32])
@pytest.mark.parametrize("name", ["unstructured", "1x4", "4x1", "2:4", "1:4"])
def test_costs_are_the_exact_rise_of_the_loss(name: str, width: int) -> None:
    pattern = pattern_of(name)
    weight, gradients = problem(1, shape_for(pattern))
    matrix = dense_fisher(gradients, width, pattern)
    weights = pattern.group(weight).flatten().double()
    costs = fisher.removal_costs(weight, measured(gradients, width, pattern), pattern)
    expected = [
        [rise_without(matrix, weights, [group * pattern.size + i for i in members])[0] for members in pattern.sets]
        for group in range(24 // pattern.size)
    ]
    torch.testing.assert_close(costs.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("width", [4, 8, 12, 24, 32])
@pytest.mark.parametrize("name", ["unstructured", "1x4", "4x1"])
def test_survivors_move_to_the_exact_minimum(name: str, width: int) -> None:
    pattern = pattern_of(name)
    weight, gradients = problem(2, shape_for(pattern))
    matrix = dense_fisher(gradients, width, pattern)
    weights = pattern.group(weight).flatten().double()
    gone = [0, 1, 2, 3, 8, 9, 10, 11]
    dropped = torch.zeros(24, dtype=torch.bool)
    dropped[gone] = True
    dropped = pattern.ungroup(dropped.view(-1, pattern.size), weight.shape)
    found = fisher.compensated(weight, measured(gradients, width, pattern), dropped, ~dropped, pattern)
    _, best = rise_without(matrix, weights, gone)
    torch.testing.assert_close(pattern.group(found).flatten().double(), best, rtol=1e-4, atol=1e-5)
    assert torch.equal(found == 0, dropped)


def test_the_update_of_one_group_is_the_papers() -> None:
    """dw = -F^-1 E_Q^T [(F^-1)_QQ]^-1 w_Q: arXiv 2203.07259."""
    pattern = pattern_of("4x1")
    weight, gradients = problem(3, SHAPE)
    inverse = dense_fisher(gradients, 24, pattern).inverse()
    weights = pattern.group(weight).flatten().double()
    chosen = [4, 5, 6, 7]
    update = -inverse[:, chosen] @ torch.linalg.solve(inverse[chosen][:, chosen], weights[chosen])
    dropped = torch.zeros(24, dtype=torch.bool)
    dropped[chosen] = True
    dropped = pattern.ungroup(dropped.view(-1, 4), SHAPE)
    found = fisher.compensated(weight, measured(gradients, 24, pattern), dropped, ~dropped, pattern)
    torch.testing.assert_close(pattern.group(found).flatten().double(), weights + update, rtol=1e-4, atol=1e-5)


def test_blocks_of_one_weight_are_the_diagonal_formula_and_move_nothing() -> None:
    pattern = pattern_of("unstructured")
    weight, gradients = problem(4, SHAPE)
    matrix = measured(gradients, 1, pattern)
    second = DAMPING + gradients.square().mean(dim=0)
    costs = fisher.removal_costs(weight, matrix, pattern)
    torch.testing.assert_close(costs.view(SHAPE), weight.square() * second / 2)  # w^2 / (2 Finv), Finv = 1 / F
    kept = weight.abs() > 0.5
    assert torch.equal(fisher.compensated(weight, matrix, ~kept, kept, pattern), weight * kept)


@pytest.mark.parametrize("name", ["1x4", "4x1", "2:4"])
def test_with_a_diagonal_matrix_a_group_costs_what_its_members_cost(name: str) -> None:
    pattern = pattern_of(name)
    weight, gradients = problem(5, shape_for(pattern))
    matrix = measured(gradients, 8, pattern)
    matrix = torch.diag_embed(matrix.diagonal(dim1=1, dim2=2))
    singles = pattern.group(weight.square()) * matrix.diagonal(dim1=1, dim2=2).reshape(-1, pattern.size) / 2
    expected = torch.stack([singles[:, list(members)].sum(dim=1) for members in pattern.sets], dim=1)
    torch.testing.assert_close(fisher.removal_costs(weight, matrix, pattern), expected)


def test_chunks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = pattern_of("2:4")
    weight, gradients = problem(6, shape_for(pattern))
    matrix = measured(gradients, 4, pattern)
    kept = weight.abs() > 0.5
    whole = fisher.removal_costs(weight, matrix, pattern), fisher.compensated(weight, matrix, ~kept, kept, pattern)
    monkeypatch.setattr(fisher, "_CHUNK", 2 * 16)
    assert torch.equal(fisher.removal_costs(weight, matrix, pattern), whole[0])
    assert torch.equal(fisher.compensated(weight, matrix, ~kept, kept, pattern), whole[1])


def test_weights_that_are_gone_neither_cost_nor_move() -> None:
    pattern = pattern_of("unstructured")
    weight, gradients = problem(7, SHAPE)
    mask = weight.abs() > 0.4
    weight = weight * mask
    matrix = measured(gradients, 12, pattern, mask)
    kept = weight.abs() > 0.8
    found = fisher.compensated(weight, matrix, mask & ~kept, kept, pattern)
    assert torch.equal(found != 0, kept)
    # The same as if the pruned weights had never been in the matrix.
    among = [i for i in range(24) if mask.flatten()[i]]
    part = dense_fisher(gradients, 12, pattern)[among][:, among]
    weights = weight.flatten()[among].double()
    _, best = rise_without(part, weights, [k for k, i in enumerate(among) if not kept.flatten()[i]])
    torch.testing.assert_close(found.flatten()[among].double(), best, rtol=1e-4, atol=1e-5)
    costs = fisher.removal_costs(weight, matrix, pattern).flatten()[among]
    expected = torch.tensor([rise_without(part, weights, [k])[0] for k in range(len(among))])
    torch.testing.assert_close(costs, expected, rtol=1e-4, atol=1e-6)


def test_too_little_damping_is_named() -> None:
    pattern = pattern_of("unstructured")
    gradient = 100 * torch.ones(4, 6)
    sums = fisher.empty_fisher(gradient, 24)
    fisher.add_gradient(sums, gradient, None, pattern)
    matrix = fisher.finish_fisher(sums, 1, 1e-9)
    with pytest.raises(RecipeError, match=r"'prune.fisher.damping' is too small: .* mean square of 1e\+04.*about 0.01"):
        fisher.removal_costs(torch.ones(4, 6), matrix, pattern)
