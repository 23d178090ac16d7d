"""A grown model computes what the small one does, where the theory says so; where it does not, by how much."""

import dataclasses
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedModel,
)

from compression import prune
from compression.checkpoint import CheckpointError, encoder_layers, encoder_matrices
from compression.grow import grow, inexact, shape_of
from compression.shapes import SHAPES, Shape

HEADS = {
    "BertForQuestionAnswering": BertForQuestionAnswering,
    "BertForSequenceClassification": BertForSequenceClassification,
    "BertForTokenClassification": BertForTokenClassification,
    "BertModel": BertModel,
}
SMALL = Shape("bert", 2, 16, 4, 24)
WIDE = Shape("bert", 2, 32, 4, 48)


def small_model(shape: Shape = SMALL, kind: str = "BertForSequenceClassification", seed: int = 0) -> PreTrainedModel:
    """A model with weights large enough that every part matters, LayerNorm's too."""
    config = BertConfig(
        vocab_size=50, num_hidden_layers=shape.layers, hidden_size=shape.hidden, num_attention_heads=shape.heads,
        intermediate_size=shape.ffn, max_position_embeddings=16, num_labels=3, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    if kind == "BertForQuestionAnswering":
        config.num_labels = 2
    model = HEADS[kind](config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            scale = 0.3 if "LayerNorm" in name or name.endswith("bias") else parameter.shape[-1] ** -0.5
            parameter.copy_(drawn * scale + ("LayerNorm.weight" in name))
    return model.train(False)


def inputs(*, types: bool = True) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 50, (3, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    second = torch.zeros_like(ids)
    second[:, 5:] = int(types)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": second}


@torch.no_grad()
def outputs(model: PreTrainedModel, *, types: bool = True) -> Tensor:
    """Everything a model answers, [..., anything], padding left out."""
    given = inputs(types=types)
    if model.config.model_type == "distilbert":
        del given["token_type_ids"]
    found = model(**given)
    kept = [part for key, part in found.items() if key != "pooler_output"]
    seen = [part if part.shape[:2] != (3, 9) else part[given["attention_mask"].bool()] for part in kept]
    return torch.cat([part.flatten() for part in seen])


def assert_same(large: PreTrainedModel, small: PreTrainedModel, *, types: bool = True, within: float = 2e-5) -> None:
    expected = outputs(small, types=types)
    torch.testing.assert_close(outputs(large, types=types), expected, rtol=0, atol=within * float(expected.abs().max()))


@pytest.mark.parametrize(
    "kind", ["BertForQuestionAnswering", "BertForSequenceClassification", "BertForTokenClassification"]
)
@pytest.mark.parametrize(
    "shape",
    [
        WIDE,
        dataclasses.replace(SMALL, hidden=48),  # three copies; heads of 12, no multiple of 4
        dataclasses.replace(SMALL, hidden=64, heads=8),  # heads of another size, and twice as many
        dataclasses.replace(SMALL, hidden=32, heads=8),  # more heads of the same size
        dataclasses.replace(SMALL, ffn=37),
        dataclasses.replace(SMALL, layers=4),
        dataclasses.replace(SMALL, layers=5),
        Shape("bert", 7, 32, 4, 50),
    ],
    ids=str,
)
def test_a_multiple_of_the_width_and_any_depth_are_exact(kind: str, shape: Shape) -> None:
    small = small_model(kind=kind)
    large = grow(small, shape)
    assert type(large) is type(small)
    assert shape_of(large.config) == shape
    assert inexact(small, shape) == []
    assert_same(large, small)


def test_the_encoder_and_its_pooler_are_exact() -> None:
    small = small_model(kind="BertModel")
    large = grow(small, Shape("bert", 3, 32, 4, 48))
    with torch.no_grad():
        expected, found = small(**inputs()), large(**inputs())
    for narrow, wide in zip(expected.to_tuple(), found.to_tuple(), strict=True):
        torch.testing.assert_close(wide, torch.cat([narrow, narrow], dim=-1), rtol=0, atol=2e-5)


@settings(max_examples=25, deadline=None)
@given(
    copies=st.integers(1, 3),
    layers=st.integers(2, 5),
    heads=st.sampled_from([4, 6, 8]),
    more=st.integers(0, 30),
    seed=st.integers(0, 1000),
)
def test_exactness_holds_for_any_such_shape_and_weights(
    copies: int, layers: int, heads: int, more: int, seed: int
) -> None:
    small = small_model(Shape("bert", 2, 24, 4, 20), seed=seed)
    shape = Shape("bert", layers, 24 * copies, heads, 20 + more)
    if shape.hidden // heads < 6:
        with pytest.raises(CheckpointError, match="head size"):
            grow(small, shape)
        return
    assert_same(grow(small, shape, seed=seed), small, within=1e-4)


def test_the_drawn_copies_are_a_function_of_the_seed() -> None:
    small = small_model()
    first, again, other = (grow(small, WIDE, seed=seed).state_dict() for seed in (1, 1, 2))
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first[name], other[name])


def test_a_width_that_is_no_multiple_is_near_and_said() -> None:
    """The features left over hold a constant for the mean of all, which is one but for LayerNorm's scale and shift."""
    small = small_model(kind="BertForTokenClassification")
    shape = dataclasses.replace(WIDE, hidden=40, heads=4)
    large = grow(small, shape)
    assert inexact(small, shape) == ["40 is no multiple of 16: LayerNorm sees slightly other statistics"]
    expected, found = outputs(small), outputs(large)
    off = float((found - expected).square().mean() / expected.square().mean()) ** 0.5
    assert 1e-5 < off < 0.2

    with torch.no_grad():  # LayerNorm without scale and shift: its outputs have mean zero, and nothing is lost
        for name, parameter in small.named_parameters():
            if "LayerNorm" in name:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    assert_same(grow(small, shape), small)


def test_distilbert_is_exact_for_one_text_where_no_tanh_is() -> None:
    small = small_model(kind="BertForTokenClassification")
    shape = dataclasses.replace(WIDE, family="distilbert")
    large = grow(small, shape)
    assert type(large).__name__ == "DistilBertForTokenClassification"
    assert_same(large, small, types=False)
    off = (outputs(large, types=True) - outputs(small, types=True)).abs().max()
    assert off > 0.01, "a second text is read as a first one"
    assert inexact(small, shape) == ["DistilBERT has no token types: every token counts as one of the first text"]


@pytest.mark.parametrize("hidden", [32, 48])
def test_distilberts_classifier_is_tanh_cut_to_three_lines(hidden: int) -> None:
    small = small_model()
    shape = Shape("distilbert", 2, hidden, 4, 48)
    large = grow(small, shape)
    assert any("tanh" in reason for reason in inexact(small, shape))
    with torch.no_grad():
        pooled = small.bert(**inputs(types=False))[1]
        lines = (0.71 * torch.atanh(pooled)).clamp(-1, 1)
        expected = functional.linear(lines, small.classifier.weight, small.classifier.bias)
    assert (lines - pooled).abs().max() < 0.113
    torch.testing.assert_close(outputs(large), expected.flatten(), rtol=0, atol=1e-4)


def test_half_of_a_doubled_encoder_is_zero_and_pruning_takes_that_first() -> None:
    """s zeros in the small model and (1 + s) / 2 in the doubled one are the same model."""
    small = small_model()
    large = grow(small, WIDE)
    assert prune.overall_sparsity(encoder_matrices(large)) == 0.5
    dense = outputs(small)
    for model, sparsity in ((small, 0.75), (large, 0.875)):
        matrices = encoder_matrices(model)
        prune.apply_masks(matrices, prune.magnitude_masks(matrices, sparsity))
    assert_same(large, small)
    assert (outputs(small) - dense).abs().max() > 0.1

    from_sparse = encoder_matrices(grow(small, WIDE))
    assert prune.overall_sparsity(from_sparse) == 0.875


def test_copies_part_in_training() -> None:
    """No dropout, the same start: only who reads which copy differs, and that is enough."""
    large = grow(small_model(), dataclasses.replace(WIDE, layers=3)).train()
    optimizer = torch.optim.AdamW(large.parameters(), lr=1e-3)
    for _ in range(4):
        optimizer.zero_grad()
        large(**inputs(), labels=torch.tensor([0, 1, 2])).loss.backward()
        optimizer.step()
    matrices = encoder_matrices(large)
    for name in ("attention_output", "ffn_out"):
        rows = matrices[f"encoder.0.{name}"].weight
        written = matrices[f"encoder.0.{name}"].bias[:16] - matrices[f"encoder.0.{name}"].bias[16:]
        assert written.abs().min() > 0, f"both copies of a feature still get the same from {name}"
        assert rows.abs().sum() > 0
    states = large(**inputs(), output_hidden_states=True).hidden_states[-1]
    assert (states[..., :16] - states[..., 16:]).abs().max() > 1e-3


def test_new_layers_add_nothing_yet_and_learn_from_the_first_step() -> None:
    large = grow(small_model(), dataclasses.replace(SMALL, layers=4)).train()
    matrices = encoder_matrices(large)
    new = [number for number in range(4) if not matrices[f"encoder.{number}.ffn_out"].weight.any()]
    assert new == [1, 3]
    large(**inputs(), labels=torch.tensor([0, 1, 2])).loss.backward()
    for number in new:
        for name in ("attention_output", "ffn_out"):
            gradient = matrices[f"encoder.{number}.{name}"].weight.grad
            assert gradient is not None and gradient.abs().max() > 0


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (dataclasses.replace(SMALL, layers=1), "layers 1 < 2"),
        (dataclasses.replace(SMALL, hidden=8), "hidden 8 < 16, head size 2 < 4"),
        (dataclasses.replace(SMALL, heads=2), "heads 2 < 4"),
        (dataclasses.replace(SMALL, ffn=16), "ffn 16 < 24"),
        (dataclasses.replace(SMALL, hidden=34), "hidden must be a multiple of heads"),
    ],
)
def test_a_shape_that_is_smaller_somewhere_is_an_error(shape: Shape, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        grow(small_model(), shape)


def test_distilberts_classifier_needs_two_neurons_for_each() -> None:
    with pytest.raises(CheckpointError, match="16 wide cannot grow to a DistilBERT 24 wide"):
        grow(small_model(), Shape("distilbert", 2, 24, 4, 48))


def test_a_distilbert_does_not_grow() -> None:
    model = DistilBertModel(DistilBertConfig(vocab_size=20, dim=16, n_layers=1, n_heads=2, hidden_dim=16))
    with pytest.raises(CheckpointError, match="a distilbert cannot be grown; the small model must be a bert"):
        grow(model, SHAPES["bert-base"])


def test_new_layers_are_spread_evenly() -> None:
    for layers in (3, 4, 5, 6, 9):
        large = grow(small_model(Shape("bert", 3, 8, 2, 8)), Shape("bert", layers, 8, 2, 8))
        matrices = encoder_matrices(large)
        old = [n for n in range(layers) if matrices[f"encoder.{n}.ffn_out"].weight.any()]
        gaps = [b - a for a, b in pairwise([*old, len(encoder_layers(large))])]
        assert len(old) == 3 and max(gaps) - min(gaps) <= 1
