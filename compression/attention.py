"""Attention in the engine's 8 bits, in torch, as an attention function of transformers."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from compression.rounding import straight_through

# Queries keep 8 bits; keys and values 7, for the reason that weights do (docs/artifact.md, section 4).
QUERY_LEVELS = 127
KEY_LEVELS = 64
WEIGHT_LEVELS = 255
# No scale is below this: what is so small weighs nothing, and its inverse stays far from overflow.
SMALLEST_SCALE = 2.0**-20
NAME = "sparselane_int8"


def symmetric_levels(x: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Round [..., features] to whole levels in [-limit, limit]; return them and the scales [..., 1]."""
    scale = (x.abs().amax(dim=-1, keepdim=True) * (1.0 / limit)).clamp_min(SMALLEST_SCALE)
    return (x * (1 / scale)).round().clamp(-limit, limit), scale


def integer_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_others: Any,
) -> tuple[Tensor, Tensor]:
    """Attend with [batch, heads, tokens, features]; gradients pass all roundings straight through.

    A key's weight is its probability times the scale of its value, 255 for the largest of a query: a key that much
    attention goes to but that says little, as [SEP] often is, leaves room for the others. Returns
    [batch, tokens, heads, features] and the probabilities as the weights stand for them.
    """
    with torch.autocast(query.device.type, enabled=False):
        query, key, value = query.float(), key.float(), value.float()
        scaling = query.size(-1) ** -0.5 if scaling is None else scaling
        scores = torch.matmul(_rounded(query, QUERY_LEVELS), _rounded(key, KEY_LEVELS).transpose(2, 3)) * scaling
        if attention_mask is not None:
            scores = scores + attention_mask
        probabilities = _as_weights(functional.softmax(scores, dim=-1), value)
        if dropout:
            probabilities = functional.dropout(probabilities, p=dropout, training=module.training)
        context = torch.matmul(probabilities, _rounded(value, KEY_LEVELS)).transpose(1, 2).contiguous()
    return context, probabilities


def _rounded(x: Tensor, limit: int) -> Tensor:
    """Levels times their scale, see `symmetric_levels`; the gradient passes straight through."""

    def rounding(x: Tensor) -> Tensor:
        levels, scale = symmetric_levels(x, limit)
        return levels.mul_(scale)

    return straight_through(x, rounding)


def _as_weights(probabilities: Tensor, value: Tensor) -> Tensor:
    """Probabilities [..., queries, keys] as the weights stand for them, see `integer_attention`; straight through."""
    scale = symmetric_levels(value.detach(), KEY_LEVELS)[1].transpose(2, 3)

    def rounding(probabilities: Tensor) -> Tensor:
        weights = probabilities * scale
        step = weights.amax(dim=-1, keepdim=True) / WEIGHT_LEVELS
        # In place: this is the largest tensor of a layer.
        return weights.div_(step).round_().mul_(step).div_(scale)

    return straight_through(probabilities, rounding)


def use_integer_attention(model: PreTrainedModel) -> None:
    """Switch a model's attention to 8 bits, in place; what it saves says nothing of it."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register(NAME, integer_attention)
    AttentionMaskInterface.register(NAME, eager_mask)
    model.set_attn_implementation(NAME)
