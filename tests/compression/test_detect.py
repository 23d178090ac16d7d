import pytest
import torch
from torch import Tensor, nn

from compression.detect import Found, find_pattern, find_patterns, overall_pattern, overall_sparsity, summary

SIZE = (96, 64)


def unstructured(sparsity: float) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randn(SIZE, generator=random) * (torch.rand(SIZE, generator=random) >= sparsity)


def blocks(sparsity: float, rows: int, columns: int) -> Tensor:
    random = torch.Generator().manual_seed(2)
    kept = torch.rand(SIZE[0] // rows, SIZE[1] // columns, generator=random) >= sparsity
    return torch.randn(SIZE, generator=random) * kept.repeat_interleave(rows, 0).repeat_interleave(columns, 1)


def n_of_m(keep: int, group: int) -> Tensor:
    weight = torch.randn(SIZE, generator=torch.Generator().manual_seed(3))
    groups = weight.abs().view(SIZE[0], -1, group)
    kept = torch.zeros_like(groups).scatter_(2, groups.topk(keep, dim=2).indices, 1.0)
    return weight * kept.view(SIZE)


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.8, 0.9, 0.97])
def test_patterns_by_construction(sparsity: float) -> None:
    assert find_pattern(unstructured(sparsity)) == "unstructured"
    assert find_pattern(blocks(sparsity, 1, 4)) == "1x4"
    assert find_pattern(blocks(sparsity, 4, 1)) == "4x1"
    assert find_pattern(blocks(sparsity, 1, 4).T) == "4x1", "the orientation is read off the tensor, not off a name"
    assert find_pattern(blocks(sparsity, 4, 4)) == "4x4"


@pytest.mark.parametrize(("keep", "group"), [(1, 2), (2, 4), (1, 4), (4, 8)])
def test_n_of_m_by_construction(keep: int, group: int) -> None:
    assert find_pattern(n_of_m(keep, group)) == f"{keep}:{group}"
    assert find_pattern(n_of_m(keep, group).T) == "unstructured", "groups lie along the inputs"


def test_blocks_with_some_zeros_inside_are_still_blocks() -> None:
    weight = blocks(0.8, 1, 4)
    weight[torch.rand(SIZE, generator=torch.Generator().manual_seed(4)) < 0.03] = 0.0
    assert find_pattern(weight) == "1x4"


def test_few_zeros_are_no_pattern() -> None:
    weight = torch.randn(SIZE)
    weight[0, :3] = 0.0  # trained weights that happen to be 0.0
    assert find_pattern(weight) == "dense"
    assert find_pattern(torch.zeros(SIZE)) == "unstructured"


def test_the_whole_model() -> None:
    matrices = {f"encoder.{layer}.query": nn.Linear(64, 96) for layer in range(2)}
    matrices["encoder.0.ffn_in"] = nn.Linear(64, 96)
    for name, weight in zip(matrices, (blocks(0.5, 1, 4), torch.ones(SIZE), blocks(0.8, 1, 4)), strict=True):
        matrices[name].weight.data = weight
    found = find_patterns(matrices)
    zeros = sum(int((matrix.weight == 0).sum()) for matrix in matrices.values())
    assert overall_sparsity(found) == pytest.approx(zeros / (3 * 96 * 64))
    assert overall_pattern(found) == "1x4", "dense matrices have no say"
    assert overall_pattern([*found, Found("x", 1, 0.5, "4x1")]) == "mixed"
    assert overall_pattern(found[1:2]) == "dense"
    assert [(kind, count, patterns) for kind, count, _, _, patterns in summary(found)] == [
        ("query", 2, "1x4 (1), dense (1)"),
        ("ffn_in", 1, "1x4"),
    ]
