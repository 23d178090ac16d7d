"""Product quantization of embedding tables: each row in parts of four columns, each part one of 256 code words.

Jegou, Douze, Schmid, "Product quantization for nearest neighbor search", 2011, section II.B: a k-means of its own for
each part. Two bits a value instead of eight, and what is lost is a tenth of a table's variance
(docs/decisions/007-product-quantized-words.md).
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from engine.artifact import CODE_WORDS, PART

Floats = npt.NDArray[np.float32]

CODE_LIMIT = 127
ROUNDS = 20
# Scales keep so many leading bits: then 127 times a scale is exact, and a table that was decoded gives itself again.
SCALE_BITS = 12


def product_quantize(table: Floats, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """Return `codes` uint8 [V, H / 4], `codebooks` int8 [H / 4, 256, 4] and `scale` float32 [H / 4] of a table [V, H].

    A table that `product_decode` made is given back exactly. Raises ValueError where H is no multiple of 4.
    """
    rows, columns = table.shape
    if columns % PART:
        raise ValueError(f"the table has {columns} columns, product quantization needs a multiple of {PART}")
    parts = columns // PART
    codes = np.zeros((rows, parts), np.uint8)
    codebooks = np.zeros((parts, CODE_WORDS, PART), np.int8)
    scales = np.ones(parts, np.float32)
    for part in tqdm(range(parts), desc="word table", disable=rows <= CODE_WORDS, mininterval=1.0):
        values = np.ascontiguousarray(table[:, PART * part : PART * (part + 1)], np.float32)
        words, codes[:, part] = _code_words(values, seed + part)
        scales[part] = _scale(float(np.abs(words).max()) / CODE_LIMIT)
        codebooks[part, : len(words)] = np.rint(words / scales[part])
    return {"codes": codes, "codebooks": codebooks, "scale": scales}


def product_decode(codes: npt.NDArray[np.uint8], codebooks: npt.NDArray[np.int8], scale: Floats) -> Floats:
    """Return the table [V, H] that the engine computes with."""
    words = codebooks.astype(np.float32) * scale[:, None, None]
    decoded: Floats = words[np.arange(len(scale)), codes].reshape(len(codes), -1)
    return decoded


def _code_words(values: Floats, seed: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Return at most 256 code words [n, 4] and the number of each value's; exact where there are no more values."""
    words, codes = np.unique(values, axis=0, return_inverse=True)
    if len(words) <= CODE_WORDS:
        return words, codes.reshape(-1)
    with threadpool_limits(1):  # threads would add up in another order each time
        means = KMeans(CODE_WORDS, n_init=1, max_iter=ROUNDS, random_state=seed).fit(values)
    return means.cluster_centers_, means.labels_


def _scale(value: float) -> float:
    """Round up to SCALE_BITS leading bits; 1 for 0."""
    if value == 0:
        return 1.0
    mantissa, exponent = np.frexp(value)
    return float(np.ldexp(np.ceil(np.ldexp(mantissa, SCALE_BITS)), exponent - SCALE_BITS))
