"""Our engine."""

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

    def prepare(batch: Batch) -> Prepared:
        ids, lengths = batch.ragged()
        return Prepared(lambda: model.forward(ids, lengths), lambda logits: logits)

    return prepare
