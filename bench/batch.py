"""What an engine is given in one call, and what is kept of its answer. Numpy only: every worker imports it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """Token ids of sequences that are run in one call."""

    sequences: tuple[tuple[int, ...], ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each sequence."""
        return tuple(len(sequence) for sequence in self.sequences)

    def ragged(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Return ids one after another and lengths, as our engine takes them."""
        return np.concatenate([np.array(s, np.int32) for s in self.sequences]), np.array(self.lengths, np.int32)

    def padded(self, least: int = 1) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return ids and attention mask [batch, longest, or least if that is more], as all other engines take them."""
        ids = np.zeros((len(self.sequences), max(least, *self.lengths)), np.int64)
        mask = np.zeros_like(ids)
        for row, sequence in enumerate(self.sequences):
            ids[row, : len(sequence)], mask[row, : len(sequence)] = sequence, 1
        return ids, mask

    def without_padding(self, logits: npt.NDArray[Any]) -> Floats:
        """Return [all tokens, labels] of logits [batch, longest, labels]."""
        rows = [row[:length] for row, length in zip(logits, self.lengths, strict=True)]
        return np.concatenate(rows).astype(np.float32)


@dataclass(frozen=True)
class Prepared:
    """A batch, ready to run: `call` is what is timed, `logits` turns its result into [all tokens, labels].

    `note` is what a reader of the record should know of the model as it was loaded.
    """

    call: Callable[[], Any]
    logits: Callable[[Any], Floats]
    note: str = ""


Prepare = Callable[[Batch], Prepared]


class EngineModule(Protocol):
    """What a module in `bench.engines` offers; it imports its package inside these functions, not at its head."""

    def describe(self) -> dict[str, str]:
        """Name the versions, and what else a reader should know of this engine here."""

    def load(self, path: Path, variant: str, threads: int) -> Prepare:
        """Load a converted model to run on `threads` threads."""


def random_batch(lengths: tuple[int, ...], vocabulary: int = 30000, seed: int = 1) -> Batch:
    """Draw token ids; the same lengths give the same batch."""
    rng = np.random.default_rng([seed, *lengths])
    return Batch(tuple(tuple(int(i) for i in rng.integers(4, vocabulary, length)) for length in lengths))
