"""The engine's arithmetic in torch: fake quantization whose gradient is the identity (straight-through)."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from compression.attention import use_integer_attention
from compression.checkpoint import embedding_tables, encoder_matrices
from compression.product import product_decode, product_quantize
from compression.rounding import straight_through

# Weights stay in [-64, 64] so that two u8 x s8 products never saturate int16 on AVX2 (255 * 64 * 2 < 32 768).
WEIGHT_LEVELS = 64
EMBEDDING_LEVELS = 127
ACTIVATION_LEVELS = 255
# A token whose values span less than 255 of these is all zeros: its inverse stays far from overflow.
SMALLEST_STEP = 2.0**-100


def fake_quantize_rows(weight: Tensor, levels: int) -> Tensor:
    """Round a [rows, columns] tensor to `levels` steps each side of zero, symmetric, one scale a row; zeros stay zero.

    Every value lies inside the range, nothing is clipped, so the straight-through gradient is the identity.
    """

    def rounding(weight: Tensor) -> Tensor:
        scale = weight.abs().amax(dim=-1, keepdim=True) / levels
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        return (weight / scale).round_().clamp_(-levels, levels).mul_(scale)

    return straight_through(weight, rounding)


def fake_quantize_tokens(x: Tensor) -> Tensor:
    """Round [..., features] to uint8 steps, asymmetric, with a scale and zero point per token, as the engine does.

    The range is the token's own minimum and maximum widened to contain 0, so the straight-through gradient is the
    identity here too. Mixed precision hands in bfloat16, whose 8 bits cannot tell 255 levels apart: rounded in float32.
    """
    return straight_through(x.float(), _round_tokens)


def _round_tokens(x: Tensor) -> Tensor:
    low, high = torch.aminmax(x, dim=-1, keepdim=True)
    low, high = low.clamp_(max=0.0), high.clamp_(min=0.0)
    scale = (high - low) / ACTIVATION_LEVELS
    scale = torch.where(scale < SMALLEST_STEP, torch.ones_like(scale), scale)
    inverse = 1 / scale
    zero = (-low * inverse).round_()
    return (x * inverse).round_().add_(zero).clamp_(0, ACTIVATION_LEVELS).sub_(zero).mul_(scale)


class QuantizedLinear(nn.Linear):
    """A linear layer in the engine's arithmetic; its parameters and their names are nn.Linear's."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002, torch's name
        """Map [..., in] to [..., out]."""
        weight = fake_quantize_rows(self.weight, WEIGHT_LEVELS)
        return functional.linear(fake_quantize_tokens(input), weight, self.bias)


class QuantizedEmbedding(nn.Embedding):
    """An embedding table with int8 rows; its parameter and its name are nn.Embedding's."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002, torch's name
        """Map ids [...] to rows [..., width]; only the rows that are read are rounded."""
        return fake_quantize_rows(super().forward(input), EMBEDDING_LEVELS)


def quantize_model(model: PreTrainedModel, *, attention: str = "int8", embeddings: str = "int8") -> None:
    """Switch encoder matrices, embeddings and attention ("int8", or "float32" to leave it) to the engine's, in place.

    embeddings: "int8", or "product": then the rows of words become what product quantization leaves of them, once, and
    must not be trained on; see `compression.product`.

    Else only classes and the attention function change: parameters, their names and the state dict stay those of the
    transformers model, so an optimizer made before, `save_pretrained` and `from_pretrained` keep working.
    """
    for matrix in encoder_matrices(model).values():
        matrix.__class__ = QuantizedLinear
    for name, table in embedding_tables(model).items():
        if (name, embeddings) == ("embeddings.word", "product"):
            quantized = product_quantize(table.weight.detach().to("cpu", torch.float32).numpy())
            table.weight.data.copy_(torch.from_numpy(product_decode(**quantized)))
        else:
            table.__class__ = QuantizedEmbedding
    if attention == "int8":
        use_integer_attention(model)
