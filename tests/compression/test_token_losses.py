"""Losses of tokens with their gradient by hand, against torch's own functions and autograd."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from compression import token_losses as module
from compression.token_losses import token_losses


def plainly(
    logits: Tensor, answers: Tensor | None, targets: Tensor, asked: Tensor, weights: tuple[float, float], t: float
) -> tuple[Tensor, Tensor]:
    """The same by torch, in float64."""
    leaf = logits.double().requires_grad_()
    entropy = functional.cross_entropy(leaf[asked], targets[asked], reduction="sum")
    apart = torch.zeros((), dtype=torch.float64)
    if answers is not None:
        p, q = (functional.log_softmax(z / t, dim=-1) for z in (answers.double(), leaf))
        apart = functional.kl_div(q, p, reduction="sum", log_target=True) * t**2
    (slope,) = torch.autograd.grad(weights[0] * entropy + weights[1] * apart + 0 * leaf.sum(), leaf)
    return torch.stack((entropy, apart)).detach(), slope


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 21),
    words=st.integers(1, 40),
    spread=st.sampled_from([0.0, 1.0, 30.0, 300.0]),
    chance=st.sampled_from([0.0, 0.3, 1.0]),
    temperature=st.sampled_from([1.0, 2.0, 5.5]),
    taught=st.booleans(),
)
def test_sums_and_gradient_are_those_of_torch(
    seed: int, rows: int, words: int, spread: float, chance: float, temperature: float, taught: bool
) -> None:
    torch.manual_seed(seed)
    logits = spread * torch.randn(rows, words)
    answers = spread * torch.randn(rows, words) + 7 if taught else None
    targets, asked = torch.randint(words, (rows,)), np.random.default_rng(seed).random(rows) < chance
    targets[torch.from_numpy(~asked)] = -100
    weights = (0.3, 1.7)
    kept = [logits.clone(), None if answers is None else answers.clone()]
    wanted, slope = plainly(logits, answers, targets, torch.from_numpy(asked), weights, temperature)
    sums, found = token_losses(logits, answers, targets, asked, weights, temperature)
    torch.testing.assert_close(sums.double(), wanted, rtol=2e-5, atol=1e-3)
    torch.testing.assert_close(found.double(), slope, rtol=2e-4, atol=1e-5)
    assert torch.equal(logits, kept[0]) and (answers is None or torch.equal(answers, kept[1]))


def test_in_bfloat16_they_are_those_of_the_rounded_logits() -> None:
    torch.manual_seed(0)
    logits, answers = (3 * torch.randn(19, 300).bfloat16() for _ in range(2))
    targets, asked = torch.randint(300, (19,)), np.arange(19) % 3 > 0
    wanted, slope = plainly(logits, answers, targets, torch.from_numpy(asked), (0.5, 0.5), 2.0)
    sums, found = token_losses(logits, answers, targets, asked, (0.5, 0.5), 2.0)
    assert found.dtype == torch.bfloat16 and sums.dtype == torch.float32
    torch.testing.assert_close(sums.double(), wanted, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(found.double(), slope, rtol=2**-8, atol=1e-8)


def test_equal_distributions_cost_nothing_and_how_rows_are_cut_changes_little(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    logits, targets = torch.randn(33, 50), torch.randint(50, (33,))
    sums, slope = token_losses(logits, logits + 4, targets, np.zeros(33, np.bool_), (1.0, 1.0), 2.0)
    assert sums.abs().max() < 1e-3 and slope.abs().max() < 1e-5
    found = []
    for rows in (1, 33):
        monkeypatch.setitem(module.ROWS, "cpu", rows)
        found.append(token_losses(logits, logits.flip(0), targets, np.ones(33, np.bool_), (0.5, 0.5), 2.0))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
