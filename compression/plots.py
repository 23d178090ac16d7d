"""Pictures of a run, drawn from metrics.jsonl: loss, sparsity and learning rate over the steps, sparsity per matrix."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # the backend must be chosen first

from compression.train import read_metrics

_CURVES = {"loss": "loss", "sparsity": "share of zeros", "learning_rate": "learning rate"}


def draw_run(folder: Path, matrix_sparsity: Mapping[str, float]) -> list[Path]:
    """Draw loss.png, sparsity.png, learning_rate.png and matrices.png into `folder`/plots; return their paths."""
    target = folder / "plots"
    target.mkdir(exist_ok=True)
    stages: dict[str, list[dict[str, Any]]] = {}
    for line in read_metrics(folder):
        if "step" in line:
            stages.setdefault(line["stage"], []).append(line)
    paths = [_draw_curve(target / f"{key}.png", key, title, stages) for key, title in _CURVES.items()]
    return [*paths, _draw_matrices(target / "matrices.png", matrix_sparsity)]


def _draw_curve(path: Path, key: str, title: str, stages: Mapping[str, list[dict[str, Any]]]) -> Path:
    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    first = 0
    for name, lines in stages.items():
        axes.plot([first + line["step"] for line in lines], [line[key] for line in lines], label=name)
        first += lines[-1]["step"] + 1
    axes.set_xlabel("step")
    axes.set_ylabel(title)
    if stages:
        axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def _draw_matrices(path: Path, matrix_sparsity: Mapping[str, float]) -> Path:
    figure, axes = pyplot.subplots(figsize=(8, 1.5 + 0.16 * len(matrix_sparsity)), layout="constrained")
    axes.barh(list(matrix_sparsity), list(matrix_sparsity.values()))
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of zeros")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
