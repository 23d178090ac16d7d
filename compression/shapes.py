"""The sizes of published encoders. No torch here: benchmarks read them in small processes."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Shape:
    """The size of an encoder; `family` is bert or distilbert."""

    family: str
    layers: int
    hidden: int
    heads: int
    ffn: int

    def __str__(self) -> str:
        """Return it as people write it."""
        return f"{self.family}, {self.layers} x {self.hidden}, {self.heads} heads, feed-forward {self.ffn}"

    def config(self) -> dict[str, int]:
        """Return the settings in the words of transformers."""
        if self.family == "distilbert":
            return {"n_layers": self.layers, "dim": self.hidden, "n_heads": self.heads, "hidden_dim": self.ffn}
        return {
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "num_attention_heads": self.heads,
            "intermediate_size": self.ffn,
        }


# As published: arXiv 1810.04805, arXiv 1910.01108.
SHAPES: Final = {
    "distilbert": Shape("distilbert", 6, 768, 12, 3072),
    "bert-base": Shape("bert", 12, 768, 12, 3072),
    "bert-large": Shape("bert", 24, 1024, 16, 4096),
}
