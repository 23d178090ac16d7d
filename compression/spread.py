"""How do the features of a narrow layer lie in a wide one? Copies of features, and who reads which copy.

D narrow features, T wide ones, T >= D. What writes features writes every copy; what reads them reads, for each of its
outputs, one copy of each feature, drawn at random. So the wide layer computes what the narrow one did, and copies are
read by different outputs, so their gradients differ: training tells them apart.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Spread:
    """`source` [T], int64: the narrow feature that each wide one copies; -1 for one that holds the mean of all."""

    narrow: int
    source: Tensor

    def write(self, tensor: Tensor) -> Tensor:
        """Give what writes the features, [D, ...], a row for each wide one, [T, ...]."""
        wide = tensor[self.source.clamp(min=0)]
        wide[self.source < 0] = tensor.mean(dim=0)
        return wide

    def read(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Let what reads the features, [outputs, D], read one copy of each, [outputs, T]; the rest is zero."""
        # float64: of two copies' draws none is ever equal, or both would be read.
        draw = torch.rand(len(weight), len(self.source), generator=generator, dtype=torch.float64)
        draw[:, self.source < 0] = -1.0
        owner = self.source.clamp(min=0).expand(len(weight), -1)
        best = torch.zeros(weight.shape, dtype=torch.float64).scatter_reduce(1, owner, draw, "amax")
        return torch.where(draw == best.gather(1, owner), weight.gather(1, owner), 0.0)

    def norm(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Widen LayerNorm's scale and shift, [D] each; features that hold the mean lower the variance."""
        share = float((self.source >= 0).double().mean())
        return share**0.5 * self.write(weight), self.write(bias)


def residual_spread(narrow: int, wide: int) -> Spread:
    """Copy every feature wide // narrow times; what is left over holds the mean of all features.

    LayerNorm over copies is exact only where every feature has as many. A feature that holds the mean has no part in
    the variance, which then is lower by a known factor (Wang et al., LEMON, arXiv 2310.07999). After a LayerNorm with
    a scale per feature the mean is not constant, but nearly: there this is an approximation, see docs/compression.md.
    """
    copies = wide // narrow
    return Spread(narrow, torch.cat([torch.arange(narrow).repeat(copies), torch.full((wide - copies * narrow,), -1)]))


def neuron_spread(narrow: int, wide: int) -> Spread:
    """Copy neurons that no LayerNorm sees (feed-forward, pooler) in turn, some once more than others."""
    return Spread(narrow, torch.arange(wide) % narrow)


def head_spread(heads: int, size: int, wide_heads: int, wide_size: int) -> Spread:
    """Copy whole heads in turn, and channels inside each head in turn; features are ordered by head, then channel."""
    head = torch.arange(wide_heads) % heads
    channel = torch.arange(wide_size) % size
    return Spread(heads * size, (head[:, None] * size + channel).flatten())


def score_factor(size: int, wide_size: int) -> Tensor:
    """Factor [wide_size] on queries and keys that keeps the attention scores when heads get larger.

    A score is the sum over channels of query times key, over the root of their number; a channel with c copies would
    count c times, and the root grows.
    """
    channel = torch.arange(wide_size) % size
    copies = torch.bincount(channel, minlength=size)[channel]
    return torch.sqrt((wide_size / size) ** 0.5 / copies)
