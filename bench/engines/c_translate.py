"""CTranslate2. It runs the encoder; the head, two rows of weights, is added outside the timed call, in its favour."""

from pathlib import Path
from typing import Any

import numpy as np

from bench.batch import Batch, Floats, Prepare, Prepared


def describe() -> dict[str, str]:
    """Name the version and what int8 means on this CPU."""
    import ctranslate2

    return {
        "ctranslate2": ctranslate2.__version__,
        "ctranslate2 types": ", ".join(sorted(ctranslate2.get_supported_compute_types("cpu"))),
    }


def load(path: Path, variant: str, threads: int) -> Prepare:
    """Load a converted folder; `variant` is the compute type. head.npz in the folder holds the output layer."""
    import ctranslate2

    encoder = ctranslate2.Encoder(str(path), device="cpu", compute_type=variant, intra_threads=threads, inter_threads=1)
    head = np.load(path / "head.npz")

    def prepare(batch: Batch) -> Prepared:
        tokens = [list(sequence) for sequence in batch.sequences]

        def logits(output: Any) -> Floats:
            hidden = np.array(output.last_hidden_state)
            return batch.without_padding(hidden @ head["weight"].T + head["bias"])

        return Prepared(lambda: encoder.forward_batch(tokens), logits)

    return prepare
