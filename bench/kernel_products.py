"""The one place of the bench that knows the engine's functions for single products."""

from typing import Any

import numpy as np
import numpy.typing as npt

from engine import _engine

Int8s = npt.NDArray[np.int8]
LANES = 32
# The matrix at which the crossover between formats is looked for.
CROSSOVER_MATRIX = (768, 768)
# The pattern of zeros that each format is made for, as rows x columns of a block.
PATTERNS = {"survivors": (1, 1), "blocks_1x4": (1, 4), "blocks_4x1": (4, 1), "dense": (1, 1), "masked": (1, 1)}
# Bytes of offsets and weights in one step of the inner loop, and the weights it holds (engine/src/packed.h).
_STEPS = {"survivors": (12, 4), "blocks_1x4": (6, 4), "blocks_4x1": (24, 16), "dense": (16, 16)}


class NoKernelsError(Exception):
    """This build of the engine cannot time single products."""


def formats() -> list[str]:
    """Name the formats of this build. Raises NoKernelsError."""
    native: Any = _engine
    if not hasattr(native, "time_product"):
        raise NoKernelsError("this build of the engine has no time_product")
    return [name for name in native.FORMATS if name in PATTERNS]


def formats_of(isa: str) -> list[str]:
    """Name those of an instruction set."""
    native: Any = _engine
    return [name for name in native.formats_of(isa) if name in PATTERNS]


def time_product(isa: str, name: str, weights: Int8s, tiles: int, repeats: int) -> list[float]:
    """Return the seconds of each of `repeats` products of int8 [M, K] with `tiles` tiles of 32 tokens, one thread."""
    native: Any = _engine
    return [float(value) for value in native.time_product(isa, weights, name, tiles, repeats)]


def is_exact(isa: str, name: str, weights: Int8s) -> bool:
    """Compare a product of one tile with numpy's, integer by integer."""
    native: Any = _engine
    x = np.random.default_rng(0).integers(0, 256, (1, weights.shape[1], LANES), dtype=np.uint8)
    wanted = weights.astype(np.int32) @ x[0].astype(np.int32)
    return bool(np.array_equal(native.product(isa, weights, x, name)[0], wanted))


def random_weights(rows: int, columns: int, density: float, name: str) -> Int8s:
    """Draw weights whose zeros have the pattern of a format."""
    rng = np.random.default_rng([rows, columns, round(1000 * density)])
    height, width = PATTERNS[name]
    kept = rng.random((rows // height, columns // width)) < density
    weights = rng.integers(1, 65, (rows, columns)) * rng.choice([-1, 1], (rows, columns))
    return np.ascontiguousarray(weights * np.kron(kept, np.ones((height, width), np.int64)), dtype=np.int8)


def bytes_moved(name: str, weights: Int8s, tiles: int) -> int:
    """Count bytes that must be read and written once: packed weights, input tiles, int32 sums."""
    rows, columns = weights.shape
    survivors = int(np.count_nonzero(weights))
    around = tiles * LANES * (columns + 4 * rows)
    if name == "masked":  # a bit for every weight, a byte for every survivor
        return int(weights.size // 8 + survivors + around)
    step_bytes, step_weights = _STEPS[name]
    return int((weights.size if name == "dense" else survivors) * step_bytes // step_weights + around)
