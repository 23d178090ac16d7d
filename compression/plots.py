"""Pictures of a run, drawn from metrics.jsonl after every stage: losses, rate, sparsity and metric over the steps."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # the backend must be chosen first

from compression.files import replacing
from compression.train import read_metrics

# File name -> the lines in it and the name of its axis.
_CURVES = {
    "loss": (("loss", "task_loss", "teacher_loss"), "loss"),
    "sparsity": (("sparsity",), "share of zeros"),
    "learning_rate": (("learning_rate",), "learning rate"),
    "metric": (("metric",), "metric of the first validation examples"),
}
_STYLES = ("-", "--", ":")


def draw_run(folder: Path, matrix_sparsity: Mapping[str, float]) -> list[Path]:
    """Draw loss, sparsity, learning_rate, metric and matrices (.png) into `folder`/plots; return their paths.

    Raises TrainingError when the disk is full.
    """
    target = folder / "plots"
    target.mkdir(exist_ok=True)
    stages = _by_stage(folder)
    for name, (keys, title) in _CURVES.items():
        _draw_curves(target / f"{name}.png", keys, title, stages)
    _draw_matrices(target / "matrices.png", matrix_sparsity)
    return [target / f"{name}.png" for name in (*_CURVES, "matrices")]


def _by_stage(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Give the lines with a step by stage, `at` counting the steps of all stages; a finished stage's metric ends it."""
    stages: dict[str, list[dict[str, Any]]] = {}
    first, name = 0, ""
    for line in read_metrics(folder):
        if "step" in line:
            if line["stage"] != name:
                first += stages[name][-1]["step"] + 1 if name else 0
                name = line["stage"]
            stages.setdefault(name, []).append({**line, "at": first + line["step"]})
        elif "metric" in line and name:
            stages[name].append(
                {"metric": line["metric"], "at": stages[name][-1]["at"], "step": stages[name][-1]["step"]}
            )
    return stages


def _draw_curves(path: Path, keys: Sequence[str], title: str, stages: Mapping[str, list[dict[str, Any]]]) -> None:
    with _figure(path, 4.0) as axes:
        for number, (name, lines) in enumerate(stages.items()):
            for key, style in zip(keys, _STYLES, strict=False):
                found = [line for line in lines if key in line]
                # A stage without a teacher has no teacher's loss: one line less.
                if found and (key == keys[0] or any(line[key] for line in found)):
                    label = name if key == keys[0] else f"{name}: {key.removesuffix('_loss')}"
                    marker = "o" if key == "metric" else None
                    points = [line["at"] for line in found], [line[key] for line in found]
                    axes.plot(*points, style, color=f"C{number}", marker=marker, label=label)
        axes.set_xlabel("step")
        axes.set_ylabel(title)
        if axes.lines:
            axes.legend(fontsize="small")
        axes.grid(alpha=0.3)


def _draw_matrices(path: Path, matrix_sparsity: Mapping[str, float]) -> None:
    with _figure(path, 1.5 + 0.16 * len(matrix_sparsity), left=0.25) as axes:
        axes.barh(list(matrix_sparsity), list(matrix_sparsity.values()))
        axes.invert_yaxis()
        axes.tick_params(axis="y", labelsize=7)
        axes.set_xlim(0, 1)
        axes.set_xlabel("share of zeros")


@contextmanager
def _figure(path: Path, height: float, left: float = 0.1) -> Iterator[Any]:
    """Give the axes of an 8 x `height` inch picture, then write it whole or not at all."""
    figure, axes = pyplot.subplots(figsize=(8, height))
    figure.subplots_adjust(left=left, right=0.98, top=1 - 0.15 / height, bottom=0.5 / height)
    try:
        yield axes
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=120, format="png")
    finally:
        pyplot.close(figure)
