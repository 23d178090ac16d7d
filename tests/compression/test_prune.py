import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from compression import prune


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(-1.0, 0.0), (0.0, 0.0), (0.25, 0.9 * 37 / 64), (0.5, 0.9 * 7 / 8), (1.0, 0.9), (2.0, 0.9)],
)
def test_cubic_schedule_by_hand(progress: float, expected: float) -> None:
    assert prune.cubic_sparsity(progress, 0.9) == pytest.approx(expected, abs=1e-12)


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_mask_equals_brute_force(rows: int, columns: int, share: float, seed: int) -> None:
    # Small integers, so that equal magnitudes are common.
    weight = torch.from_numpy(np.random.default_rng(seed).integers(-3, 4, (rows, columns)).astype(np.float32))
    drop = math.ceil(share * rows * columns)
    order = sorted(range(rows * columns), key=lambda i: (abs(float(weight.flatten()[i])), i))
    expected = torch.ones(rows * columns, dtype=torch.bool)
    expected[order[:drop]] = False
    assert torch.equal(prune.magnitude_mask(weight, share), expected.view(rows, columns))


def test_masks_are_per_matrix_and_zeros_are_exact() -> None:
    torch.manual_seed(0)
    matrices = {"small": nn.Linear(40, 10), "large": nn.Linear(40, 10)}
    with torch.no_grad():
        matrices["small"].weight.mul_(1e-3)
    masks = prune.magnitude_masks(matrices, 0.9)
    prune.apply_masks(matrices, masks)
    assert prune.sparsity(matrices) == {"small": pytest.approx(0.9), "large": pytest.approx(0.9)}
    assert prune.overall_sparsity(matrices) == pytest.approx(0.9)


def test_pruned_weights_stay_zero_through_adamw_with_momentum_and_decay() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(16, 16)
    matrices = {"m": layer}
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.1)
    masks: prune.Masks = {}
    for step in range(12):
        if step == 4:  # moments exist by now
            masks = prune.magnitude_masks(matrices, 0.7)
            prune.apply_masks(matrices, masks)
        layer(torch.randn(8, 16)).square().mean().backward()
        prune.mask_gradients(matrices, masks)
        optimizer.step()
        optimizer.zero_grad()
        prune.apply_masks(matrices, masks)
    assert torch.equal(layer.weight == 0, ~masks["m"])
