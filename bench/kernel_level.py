"""The kernel level: our products alone at BERT shapes, beside the machine's limits; time over density by format."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import engine
from bench import kernel_products
from bench.ceilings import step_limit
from bench.kernel_products import CROSSOVER_MATRIX, LANES

# Rows x columns of the matrices of BERT-Base (attention, ffn_in, ffn_out), BERT-Large and MiniLM.
MATRICES = ((768, 768), (3072, 768), (768, 3072), (1024, 1024), (4096, 1024), (1024, 4096), (384, 384), (1536, 384))
QUICK_MATRICES = ((768, 768),)
TILES = (1, 4)
DENSITIES = (0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
# At every density the crossover's matrix, at these the others.
SAMPLED_DENSITIES = (0.1, 0.3)
# The reference is the definition, not a competitor: timed it would only say how slow obvious code is.
NOT_TIMED = "reference"

Row = dict[str, Any]


def cases(*, quick: bool) -> list[tuple[str, str, tuple[int, int], float, int]]:
    """List instruction set, format, matrix, density and tiles of every product. Raises NoKernelsError."""
    isas = [isa for isa in engine.supported_isas() if isa != NOT_TIMED]
    listed = []
    for matrix in QUICK_MATRICES if quick else MATRICES:
        densities = DENSITIES if matrix == CROSSOVER_MATRIX and not quick else SAMPLED_DENSITIES
        for name in kernel_products.formats():
            for density in densities:
                for isa in (isa for isa in isas if name in kernel_products.formats_of(isa)):
                    listed += [(isa, name, matrix, density, tiles) for tiles in ((1,) if quick else TILES)]
    return listed


def measure(ceilings: dict[str, float], repeats: int, *, quick: bool, progress: Callable[[str], None]) -> Iterator[Row]:
    """Give the rows of kernels.csv: one per product, with best and median; those that are not exact have no time."""
    for isa, name, (rows, columns), density, tiles in cases(quick=quick):
        progress(f"{isa} {name} {rows}x{columns}")
        weights = kernel_products.random_weights(rows, columns, density, name)
        survivors = int(np.count_nonzero(weights))
        row: Row = {
            "isa": isa,
            "format": name,
            "rows": rows,
            "columns": columns,
            "density": round(survivors / weights.size, 4),
            "wanted_density": density,
            "tiles": tiles,
            "status": "ok" if kernel_products.is_exact(isa, name, weights) else "mismatch",
        }
        if row["status"] == "ok":
            # One untimed product warms caches and branch predictor.
            seconds = kernel_products.time_product(isa, name, weights, tiles, repeats + 1)[1:]
            best = min(seconds)
            limit = step_limit(ceilings, isa, name, survivors / weights.size)
            products = survivors * tiles * LANES
            row |= {
                "best_s": best,
                "median_s": float(np.median(seconds)),
                "products_per_s": products / best,
                "bytes_moved": kernel_products.bytes_moved(name, weights, tiles),
                "bytes_per_s": kernel_products.bytes_moved(name, weights, tiles) / best,
                "share_of_limit": products / best / limit if limit else "",
            }
        yield row
