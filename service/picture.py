"""The picture of an artifact: zeros of every matrix as a map, and what its bytes are for."""

from io import BytesIO
from pathlib import Path

import engine.artifact
from service.errors import StartupError
from service.inspection import SHORT, Inspection, size


def draw(found: Inspection, path: Path) -> None:
    """Write a PNG to `path`, under another name until it is whole.

    Raises:
        StartupError: matplotlib is not installed; the server does without its 60 MB.
    """
    try:
        from matplotlib.figure import Figure  # not pyplot: no display, no global state
    except ImportError:
        raise StartupError("drawing needs matplotlib: pip install 'sparselane[plots]'") from None
    layers = found.manifest.architecture.layers
    figure = Figure(figsize=(9, 2.6 + 0.34 * layers), layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=(0.34 * layers + 0.6, 0.9))
    names = list(engine.artifact.MATRICES)
    zeros = [[0.0] * len(names) for _ in range(layers)]
    for matrix in found.matrices:
        zeros[matrix.layer][names.index(matrix.name)] = 100 * matrix.sparsity
    image = top.imshow(zeros, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    top.set_xticks(range(len(names)), [SHORT[name] for name in names])
    top.set_yticks(range(layers), [str(layer) for layer in range(layers)])
    top.set(
        ylabel="layer", title=f"{found.manifest.name}: {found.manifest.sparsity['overall']:.1%} zeros, % per matrix"
    )
    for layer, row in enumerate(zeros):
        for place, value in enumerate(row):
            top.text(place, layer, f"{value:.1f}", ha="center", va="center", color="black" if value > 60 else "white")
    figure.colorbar(image, ax=top)
    left = 0
    for name, number in found.parts.items():
        bottom.barh(0, number, left=left, label=f"{name}: {size(number)}")
        left += number
    bottom.set(yticks=[], xlim=(0, left), title=f"{size(left)} on disk")
    bottom.set_xticks([])
    bottom.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, 0), frameon=False)
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=110, metadata={"Software": None})
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_bytes(drawn.getvalue())
    unfinished.replace(path)
