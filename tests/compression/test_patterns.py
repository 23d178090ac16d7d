"""Masks by construction and against brute force; matrices pruned in a pattern as the engine takes them."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import BertConfig, DistilBertConfig

import engine
from compression import prune
from compression.checkpoint import encoder_matrices, load_model, load_tokenizer, model_labels
from compression.export import Origin, export_model
from compression.patterns import check_pattern, lowest, pattern_of, select_masks
from compression.recipe import RecipeError, Task
from tests.compression import tiny

PATTERNS = ("unstructured", "1x4", "4x1", "2:4", "1:4", "3:5")


def integers(seed: int, *shape: int) -> Tensor:
    """Small ones, so that equal costs are common."""
    return torch.from_numpy(np.random.default_rng(seed).integers(-3, 4, shape).astype(np.float32))


def brute_force(matrices: dict[str, Tensor], name: str, scope: str, sparsity: float) -> dict[str, Tensor]:
    """Loop over groups as the definition of each pattern has them; costs are sums of magnitudes."""
    pattern = pattern_of(name)
    masks = {key: torch.ones_like(matrix, dtype=torch.bool) for key, matrix in matrices.items()}
    for pool in [[*matrices]] if scope == "global" else [[key] for key in matrices]:
        offers = []
        for key in pool:
            rows, columns = matrices[key].shape
            places = list(itertools.product(range(rows), range(columns)))
            if name == "4x1":
                places.sort(key=lambda place: (place[1], place[0]))
            for at in range(0, len(places), pattern.size):
                group = places[at : at + pattern.size]
                sets = [[group[i] for i in members] for members in pattern.sets]
                costs = [sum(abs(float(matrices[key][place])) for place in chosen) for chosen in sets]
                offers.append((min(costs), key, sets[costs.index(min(costs))]))
        offers.sort(key=lambda offer: offer[0])  # stable: the earlier of equals first
        for _, key, chosen in offers[: math.ceil(sparsity / pattern.most * len(offers))]:
            for place in chosen:
                masks[key][place] = False
    return masks


@given(
    name=st.sampled_from(PATTERNS),
    scope=st.sampled_from(["matrix", "global"]),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_masks_equal_brute_force(name: str, scope: str, share: float, seed: int) -> None:
    pattern = pattern_of(name)
    size = pattern.size
    matrices = {"a": integers(seed, size, 2 * size), "b": integers(seed + 1, 2 * size, 3 * size)}
    linears = {key: nn.Linear(*reversed(matrix.shape)) for key, matrix in matrices.items()}
    for key, linear in linears.items():
        linear.weight.data = matrices[key]
    found = prune.magnitude_masks(linears, share * pattern.most, pattern=name, scope=scope)
    expected = brute_force(matrices, name, scope, share * pattern.most)
    assert all(torch.equal(found[key], expected[key]) for key in matrices)


@given(count=st.integers(0, 40), seed=st.integers(0, 99))
def test_lowest_takes_the_earlier_of_equals(count: int, seed: int) -> None:
    costs = integers(seed, 40)
    costs[:3] = float("-inf")
    order = sorted(range(40), key=lambda i: (float(costs[i]), i))
    assert lowest(costs, count).nonzero().flatten().tolist() == sorted(order[:count])


def test_blocks_by_construction() -> None:
    weight = torch.ones(4, 8)
    weight[1, 4:] = weight[:, 2] = 0.1  # one 1x4 block and one 4x1 block are small
    wide = prune.magnitude_masks({"m": linear(weight)}, 1 / 8, pattern="1x4")["m"]
    assert wide.logical_not().nonzero().tolist() == [[1, 4], [1, 5], [1, 6], [1, 7]]
    tall = prune.magnitude_masks({"m": linear(weight)}, 1 / 8, pattern="4x1")["m"]
    assert tall.logical_not().nonzero().tolist() == [[0, 2], [1, 2], [2, 2], [3, 2]]


def test_two_of_four_by_construction_and_gradually() -> None:
    weight = torch.tensor([[4.0, 1, 2, 3, 0.1, 0.2, 9, 9]])
    half = prune.magnitude_masks({"m": linear(weight)}, 0.25, pattern="2:4")["m"]
    assert half.int().tolist() == [[1, 1, 1, 1, 0, 0, 1, 1]], "first the group that loses least"
    whole = prune.magnitude_masks({"m": linear(weight)}, 0.5, pattern="2:4")["m"]
    assert whole.int().tolist() == [[1, 0, 0, 1, 0, 0, 1, 1]]


def test_global_scope_takes_from_the_small_matrix() -> None:
    matrices = {"small": linear(0.01 * torch.rand(8, 8)), "large": linear(1 + torch.rand(8, 8))}
    masks = prune.magnitude_masks(matrices, 0.5, scope="global")
    assert not masks["small"].any() and masks["large"].all()


@pytest.mark.parametrize("name", PATTERNS)
def test_grouping_is_undone(name: str) -> None:
    pattern = pattern_of(name)
    matrix = torch.arange(20.0 * 40).view(20, 40)
    assert torch.equal(pattern.ungroup(pattern.group(matrix), matrix.shape), matrix)


@pytest.mark.parametrize(
    ("name", "side", "length"), [("1x4", "inputs", 6), ("4x1", "outputs", 10), ("2:4", "inputs", 6)]
)
def test_a_matrix_that_does_not_fit_is_an_error(name: str, side: str, length: int) -> None:
    with pytest.raises(RecipeError, match=f"'{name}'; .*{side} are a multiple of 4, .* one with {length}"):
        select_masks({"m": pattern_of(name).group(torch.ones(10, 6))}, {}, pattern_of(name), "matrix", 0.5)


def test_a_checkpoint_that_does_not_fit_is_found_before_training() -> None:
    check_pattern("4x1", BertConfig(hidden_size=32, intermediate_size=64))
    for config in (
        BertConfig(hidden_size=32, intermediate_size=62),
        DistilBertConfig(dim=32, n_heads=2, hidden_dim=62),
    ):
        with pytest.raises(RecipeError, match="one with 62"):
            check_pattern("4x1", config)


@pytest.mark.parametrize(("name", "formats"), [("4x1", {"blocks_4x1"}), ("1x4", {"blocks_1x4"})])
def test_the_engine_takes_pruned_blocks_as_such(tmp_path: Path, name: str, formats: set[str]) -> None:
    base = str(tiny.checkpoint(tmp_path / "base", hidden=64))
    task = Task("text-classification", labels=("a", "b"), window=32, stride=8)
    model = load_model(base, task)
    matrices = encoder_matrices(model)
    prune.apply_masks(matrices, prune.magnitude_masks(matrices, 0.9, pattern=name))
    export_model(
        model, load_tokenizer(base).to_str(), task, model_labels(task), Origin("blocks"), tmp_path / "artifact"
    )
    # Kernels that are named have the costs of their table; a matrix unit, measured, might win by a hair here.
    loaded = engine.load(tmp_path / "artifact", threads=1, isa=engine.supported_isas()[-1])
    assert set(loaded.formats) == formats


def linear(weight: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0])
    made.weight.data = weight.clone()
    return made
