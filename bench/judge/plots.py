"""The reliability diagram of a model: how sure it was, and how often it was right then."""

from pathlib import Path

from bench.judge.quality import calibration_bins
from bench.judge.records import Tables


def draw_reliability(path: Path, name: str, tables: Tables) -> None:
    """Draw one small PNG with a line for each set; nothing where calibration is not measured."""
    if "calibration" not in tables:
        return
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    figure = Figure(figsize=(4.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
    for one in dict.fromkeys(row["set"] for row in tables["calibration"]):
        bins = calibration_bins(tables, one)
        axes.plot([b.confidence for b in bins], [b.right for b in bins], marker="o", markersize=3, label=one)
    axes.set(xlabel="confidence", ylabel="share right", title=name, xlim=(0, 1), ylim=(0, 1))
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=7)
    # Without the date and version that matplotlib adds: the same rows give the same file.
    unfinished = path.with_suffix(".unfinished")
    figure.savefig(unfinished, format="png", dpi=80, metadata={"Software": None})
    unfinished.rename(path)
