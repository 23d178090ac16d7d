"""Our engine."""

from collections import Counter
from pathlib import Path

from bench.batch import Batch, Prepare, Prepared


def describe() -> dict[str, str]:
    """Name the kernel sets of this CPU."""
    import engine

    return {"sparselane kernels": ", ".join(engine.supported_isas())}


def load(path: Path, variant: str, threads: int) -> Prepare:
    """Load an artifact; `variant` is the instruction set, empty for the engine's own choice."""
    import engine

    model = engine.load(path, threads=threads, isa=variant or None)
    # Measured at load, so another time it may be another one.
    formats = ", ".join(f"{count} {name}" for name, count in sorted(Counter(model.formats).items()))

    def prepare(batch: Batch) -> Prepared:
        ids, lengths = batch.ragged()
        return Prepared(lambda: model.forward(ids, lengths), lambda logits: logits, f"{model.isa}: {formats}")

    return prepare
