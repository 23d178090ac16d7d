"""Attention in 8 bits in torch: against the engine, against exact attention, and its gradients."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

from compression.attention import integer_attention, symmetric_levels, use_integer_attention
from engine import _engine

EVALUATING = SimpleNamespace(training=False)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None) -> np.ndarray:
    """One sequence, one head: [tokens, features] each."""
    context, _ = integer_attention(EVALUATING, query[None, None], key[None, None], value[None, None], mask)  # type: ignore[arg-type]
    return context[0, :, 0].detach().numpy()


@given(seed=st.integers(0, 2**31), tokens=st.integers(1, 60), features=st.integers(1, 40))
def test_it_is_the_engines(seed: int, tokens: int, features: int) -> None:
    """The same levels of query, key and value; a weight near a tie may be one level apart, 1/255."""
    torch.manual_seed(seed)
    query, key, value = torch.randn(3, tokens, features)
    value *= torch.exp2(torch.randint(-6, 3, (tokens, 1)).float())
    ours = _engine.attention("reference", query.numpy(), key.numpy(), value.numpy(), 0, "int8")
    difference = np.abs(attend(query, key, value) - ours).max(axis=1)
    assert np.median(difference) < 1e-5 * float(value.abs().max())
    assert difference.max() < 2 / 255 * float(value.abs().max()) + 1e-5


def test_levels_and_scales_by_hand() -> None:
    levels, scale = symmetric_levels(torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]]), 64)
    assert levels.tolist() == [[32, -64, 16], [0, 0, 0]]
    assert scale.flatten().tolist() == [2 / 64, 2.0**-20]


def test_masked_keys_have_no_part() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 9, 8)
    mask = torch.zeros(1, 1, 9, 9)
    mask[..., 6:] = torch.finfo(torch.float32).min
    value[6:] *= 1e6
    alone = attend(query[:6], key[:6], value[:6])
    np.testing.assert_allclose(attend(query, key, value, mask)[:6], alone, atol=1e-6)  # sums in another order


def test_gradients_are_those_of_attention_on_the_rounded_numbers() -> None:
    """Straight through: the rounding of each operand is a constant that is added to it."""
    torch.manual_seed(0)
    operands = [torch.randn(2, 3, 7, 8, requires_grad=True) for _ in range(3)]
    slope = torch.randn(2, 7, 3, 8)
    context, _ = integer_attention(EVALUATING, *operands, None)  # type: ignore[arg-type]
    (context * slope).sum().backward()
    found = [operand.grad for operand in operands]
    plain = [operand.detach().clone().requires_grad_() for operand in operands]
    exact = torch.softmax(plain[0] @ plain[1].transpose(2, 3) * 8**-0.5, -1) @ plain[2]
    (exact.transpose(1, 2) * slope).sum().backward()
    for ours, theirs in zip(found, plain, strict=True):
        assert ours is not None and theirs.grad is not None
        assert torch.nn.functional.cosine_similarity(ours.flatten(), theirs.grad.flatten(), dim=0) > 0.999


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_a_model_attends_so_with_padding_and_saves_nothing_of_it(family: str) -> None:
    sizes = {"vocab_size": 50, "max_position_embeddings": 32}
    model: torch.nn.Module
    if family == "bert":
        model = BertModel(BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, **sizes))
    else:
        model = DistilBertModel(DistilBertConfig(dim=32, n_layers=2, n_heads=4, **sizes))
    model.train(False)
    ids, attended = torch.randint(0, 50, (2, 12)), torch.ones(2, 12, dtype=torch.long)
    attended[0, 7:] = 0
    with torch.no_grad():
        before = model(ids, attention_mask=attended).last_hidden_state
        use_integer_attention(model)  # type: ignore[arg-type]
        after = model(ids, attention_mask=attended).last_hidden_state
        alone = model(ids[:1, :7], attention_mask=attended[:1, :7]).last_hidden_state
    assert 0 < (after - before).abs().max() < 0.1
    assert (after[0, :7] - alone[0]).abs().max() < 0.02  # padding changes sums' order, hence a level here and there
    assert "sparselane" not in str(model.config.to_dict())
