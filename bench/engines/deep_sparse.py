"""DeepSparse, sparse int8 or float32 (which one is in the file), in its own old environment."""

import shutil
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.batch import Batch, Floats, Prepare, Prepared


def describe() -> dict[str, str]:
    """Name the version and the instruction set it found."""
    import deepsparse

    found = deepsparse.cpu.cpu_architecture()
    return {"deepsparse": version("deepsparse"), "deepsparse kernels": f"{found.isa}, vnni: {found.vnni}"}


def load(path: Path, variant: str, threads: int) -> Prepare:  # noqa: ARG001, the file decides
    """Copy the file: DeepSparse compiles it for the exact shape of each batch, untimed, 10 to 30 seconds.

    It writes the shape into the file that it is given, which other engines read too.
    """
    import deepsparse

    folder = TemporaryDirectory(prefix="deepsparse-")
    own = shutil.copy(path, folder.name)
    compiled: dict[tuple[int, ...], Any] = {}

    def prepare(batch: Batch) -> Prepared:
        ids, mask = batch.padded()
        if ids.shape not in compiled:
            compiled.clear()
            compiled[ids.shape] = deepsparse.compile_model(
                own, batch_size=ids.shape[0], num_cores=threads, input_shapes=[list(ids.shape)] * 2
            )
        engine, inputs = compiled[ids.shape], [ids, mask]

        def logits(result: Any) -> Floats:
            return batch.without_padding(result[0])

        return Prepared(lambda: engine.run(inputs, val_inp=False), logits)

    prepare.folder = folder  # type: ignore[attr-defined]  # kept as long as this is
    return prepare
