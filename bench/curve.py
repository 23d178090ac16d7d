"""`python -m bench.curve`: what more or fewer zeros cost, on the tasks of the embedded models; makes docs/curve.png.

`run` trains the recipe of each embedded model at other sparsities, with one teacher; what is done is not done again.
`report` reads finished runs and the embedded models into bench/record/curve/rows.csv, and writes the table of
docs/results.md and the picture.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench.accuracy import RESULTS
from bench.embedded import NAMES, RECIPES
from bench.judge.page import GOAL
from bench.models import EMBEDDED
from bench.record import RECORDS, read_rows, write_rows
from bench.results import with_results
from bench.side_by_side import Job, run_jobs

SPARSITIES: Final = (0.8, 0.85, 0.9, 0.95)
ROWS: Final = RECORDS / "curve" / "rows.csv"
PICTURE: Final = RESULTS.with_name("curve.png")
BEGIN, END = "<!-- curve: python -m bench.curve report -->", "<!-- end of curve -->"

Row = Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run or report, as the command line says."""
    options = _parser().parse_args(arguments)
    if options.what == "run":
        wanted = jobs(options.names, options.folder)
        for job in run_jobs(wanted, options.data, options.at_once, options.threads, record=options.record_steps):
            print(f"not done: {job.folder}, see {job.folder / 'run.log'}")
        return
    rows = list(collect(options.folder)) or read_rows(ROWS)
    if not rows:
        sys.exit(f"error: no finished run in {options.folder / 'runs' / 'curve'}; python -m bench.curve run makes them")
    write_rows(ROWS, rows)
    RESULTS.write_text(with_results(RESULTS.read_text(encoding="utf-8"), table(rows), BEGIN, END), encoding="utf-8")
    draw(rows, PICTURE)


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m bench.curve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("what", choices=("run", "report"))
    made.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets")
    made.add_argument("--folder", type=Path, default=Path(), help="where runs/ is")
    made.add_argument("--names", nargs="+", choices=NAMES, default=NAMES)
    made.add_argument("--at-once", type=int, default=1, help="runs at a time: on a large GPU several")
    made.add_argument("--threads", type=int, default=1, help="CPU threads of each run")
    made.add_argument("--record-steps", action="store_true", help="as of sparselane-compress run")
    return made


def at_sparsity(recipe: str, sparsity: float) -> str:
    """Return a recipe with another final sparsity, all else as it is. Raises ValueError where it names none."""
    changed, found = re.subn(r"^sparsity = [0-9.]+", f"sparsity = {sparsity:g}", recipe, flags=re.MULTILINE)
    if found != 1:
        raise ValueError(f"a recipe has one line 'sparsity = ...', this one has {found}")
    return changed


def jobs(names: Sequence[str], folder: Path) -> list[Job]:
    """Return the jobs of some models, the lowest sparsity first; the first of a model trains the teacher of all."""
    made: list[Job] = []
    first: dict[str, Path] = {}
    for sparsity in SPARSITIES:
        for name in names:
            recipe = (RECIPES / f"{name}.toml").read_text(encoding="utf-8")
            changed = at_sparsity(recipe, sparsity)
            if changed != recipe:  # the embedded model is that point
                made.append(Job(folder / run_folder(name, sparsity), changed, teacher=first.get(name)))
                first.setdefault(name, made[-1].folder)
    return made


def run_folder(name: str, sparsity: float) -> str:
    """Name the folder of a run at another sparsity, relative to where the runs are made."""
    return f"runs/curve/{name}-{100 * sparsity:g}"


def collect(folder: Path, models: Path = EMBEDDED) -> Iterable[Row]:
    """Read what the manifests of finished runs and of the embedded models say: a row for each model and sparsity."""
    for name in NAMES:
        artifacts = [models / name, *(run / "artifact" for run in (folder / "runs" / "curve").glob(f"{name}-*"))]
        manifests = [path / "manifest.json" for path in artifacts]
        rows = [_row(name, json.loads(path.read_text(encoding="utf-8"))) for path in manifests if path.is_file()]
        if len(rows) > 1:  # one point is no curve
            yield from sorted(rows, key=lambda row: float(row["sparsity"]))


def _row(name: str, manifest: Mapping[str, Any]) -> Row:
    quality, size = manifest["quality"], manifest["size"]
    return {
        "model": name,
        "set": f"{quality['dataset']} {quality['split']}",
        "metric": quality["metric"],
        "examples": quality["examples"],
        "dense": quality["dense"],
        "float32": quality["sparse"],
        "int8": quality["quantized"],
        "sparsity": round(manifest["sparsity"]["overall"], 4),
        "encoder_ratio": round(size["ratio_encoder"], 1),
        "bytes": size["total_bytes"],
        "minutes": round(sum(manifest["provenance"]["minutes"].values()), 1),
    }


def loss(row: Row) -> float:
    """What a row's artifact loses, relative to its dense teacher."""
    return 1 - float(row["int8"]) / float(row["dense"])


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table: a line for each model and sparsity."""
    if not rows:
        return "Not run yet."
    lines = [
        "| model | zeros | dense | float32 | int8 | loss | encoder smaller | file |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        factor = 1.0 if row["metric"] == "f1" else 100.0
        scores = " | ".join(f"{factor * float(row[key]):.1f}" for key in ("dense", "float32", "int8"))
        lost = f"{100 * loss(row):.1f} %"
        lines.append(
            f"| {row['model']}, {row['set']} | {100 * float(row['sparsity']):.0f} % | {scores} | "
            f"{f'**{lost}**' if loss(row) < GOAL else lost} | {float(row['encoder_ratio']):.0f}x | "
            f"{int(row['bytes']) / 1e6:.1f} MB |"
        )
    return "\n".join(lines)


def draw(rows: Sequence[Row], target: Path) -> None:
    """Draw the loss of every model over its zeros."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for name in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == name]
        axes.plot([100 * float(row["sparsity"]) for row in mine], [100 * loss(row) for row in mine], "o-", label=name)
    axes.axhline(100 * GOAL, color="grey", linestyle=":", label="1 %")
    axes.set(xlabel="zeros of the encoder, %", ylabel="lost of the dense teacher's score, %", ylim=(-0.5, None))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(target, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
