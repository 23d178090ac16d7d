"""DeepSparse, sparse int8 or float32 (which one is in the file), in its own old environment."""

import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from bench.batch import Batch, Floats, Prepare, Prepared

# Tokens of the shape that it is known to be fast at.
PADDED = 128


def describe() -> dict[str, str]:
    """Name the version and the instruction set it found."""
    import deepsparse

    found = deepsparse.cpu.cpu_architecture()
    return {"deepsparse": version("deepsparse"), "deepsparse kernels": f"{found.isa}, vnni: {found.vnni}"}


def load(path: Path, variant: str, threads: int) -> Prepare:  # noqa: ARG001, the file decides
    """Copy the file: DeepSparse compiles it for the shape of each batch, untimed, 10 to 30 seconds.

    Short batches for PADDED tokens, too: it may take longer for 32 than for 128, and who uses it would then pad. The
    faster of both is what is timed. It writes the shape into the file that it is given, which other engines read too.
    """
    import deepsparse

    folder = TemporaryDirectory(prefix="deepsparse-")
    own = shutil.copy(path, folder.name)
    compiled: dict[tuple[int, ...], Any] = {}

    def call_of(inputs: list[Any]) -> Callable[[], Any]:
        shape = inputs[0].shape
        if shape not in compiled:
            compiled[shape] = deepsparse.compile_model(
                own, batch_size=shape[0], num_cores=threads, input_shapes=[list(shape)] * 2
            )
        engine = compiled[shape]
        return lambda: engine.run(inputs, val_inp=False)

    def prepare(batch: Batch) -> Prepared:
        shapes = {ids.shape: [ids, mask] for ids, mask in (batch.padded(), batch.padded(PADDED))}
        for shape in compiled.keys() - shapes.keys():
            del compiled[shape]
        calls = {shape: call_of(inputs) for shape, inputs in shapes.items()}
        best = min(calls, key=lambda shape: _seconds(calls[shape]))

        def logits(result: Any) -> Floats:
            return batch.without_padding(result[0])

        return Prepared(calls[best], logits, f"padded to {best[1]}" if best[1] > max(batch.lengths) else "")

    prepare.folder = folder  # type: ignore[attr-defined]  # kept as long as this is
    return prepare


def _seconds(call: Callable[[], Any], repeats: int = 5) -> float:
    """Return the shortest of some calls."""
    times = []
    for _ in range(repeats):
        began = perf_counter()
        call()
        times.append(perf_counter() - began)
    return min(times)
