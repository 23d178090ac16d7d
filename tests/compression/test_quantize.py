import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from compression.checkpoint import load_model
from compression.quantize import (
    EMBEDDING_LEVELS,
    WEIGHT_LEVELS,
    QuantizedEmbedding,
    QuantizedLinear,
    fake_quantize_rows,
    fake_quantize_tokens,
    quantize_model,
)
from compression.recipe import Task
from tests.compression import tiny

FLOATS = st.floats(-1e4, 1e4, width=32).map(lambda x: 0.0 if abs(x) < 1e-20 else x)
MATRICES = arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 9)), elements=FLOATS)


def numpy_tokens(x: np.ndarray) -> np.ndarray:
    """The definition in the design, one token at a time, in float32."""
    result = np.empty_like(x)
    for row, values in enumerate(x):
        low, high = np.minimum(values.min(), np.float32(0)), np.maximum(values.max(), np.float32(0))
        scale = np.float32(high - low) / np.float32(255)
        scale = scale if scale >= 2.0**-100 else np.float32(1)
        inverse = np.float32(1) / scale
        zero = np.rint(-low * inverse)
        q = np.clip(np.rint(values * inverse) + zero, 0, 255)
        result[row] = (q - zero) * scale
    return result


@given(MATRICES)
def test_tokens_equal_the_definition_bit_for_bit(x: np.ndarray) -> None:
    assert np.array_equal(fake_quantize_tokens(torch.from_numpy(x)).numpy(), numpy_tokens(x))


@given(MATRICES, st.sampled_from([WEIGHT_LEVELS, EMBEDDING_LEVELS]))
def test_rows_lie_on_the_grid_within_half_a_step_and_zero_stays_zero(w: np.ndarray, levels: int) -> None:
    rounded = fake_quantize_rows(torch.from_numpy(w), levels).numpy()
    scale = np.abs(w).max(axis=1, keepdims=True) / np.float32(levels)
    scale[scale == 0] = 1
    steps = rounded / scale
    assert np.abs(steps).max() <= levels + 1e-3
    assert np.abs(steps - np.rint(steps)).max() < 1e-3
    assert (np.abs(rounded - w) <= 0.5001 * scale).all()
    assert (rounded[w == 0] == 0).all()


def test_a_token_of_zeros_and_a_row_of_zeros_are_exact() -> None:
    zeros = torch.zeros(2, 5)
    assert torch.equal(fake_quantize_tokens(zeros), zeros)
    assert torch.equal(fake_quantize_rows(zeros, WEIGHT_LEVELS), zeros)


def test_bfloat16_tokens_are_rounded_in_float32() -> None:
    x = torch.randn(5, 300).bfloat16()
    assert torch.equal(fake_quantize_tokens(x), fake_quantize_tokens(x.float()))


def test_gradients_pass_straight_through() -> None:
    x = torch.randn(3, 7, requires_grad=True)
    w = torch.randn(4, 7, requires_grad=True)
    slope_x, slope_w = torch.randn(3, 7), torch.randn(4, 7)
    ((fake_quantize_tokens(x) * slope_x).sum() + (fake_quantize_rows(w, WEIGHT_LEVELS) * slope_w).sum()).backward()
    assert torch.equal(x.grad, slope_x) and torch.equal(w.grad, slope_w)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_a_quantized_model_keeps_its_names_and_loads_anywhere(tmp_path: Path, family: str) -> None:
    task = Task("text-classification", labels=("a", "b"))
    model = load_model(str(tiny.checkpoint(tmp_path / "base", family=family)), Task(task.name, task.labels, window=32))
    before = copy.deepcopy(model.state_dict())
    quantize_model(model)
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(QuantizedLinear) == 12
    assert kinds.count(QuantizedEmbedding) == (3 if family == "bert" else 2)
    assert list(model.state_dict()) == list(before)
    model.save_pretrained(tmp_path / "saved")
    again = load_model(str(tmp_path / "saved"), Task(task.name, task.labels, window=32))
    assert all(torch.equal(value, before[name]) for name, value in again.state_dict().items())
