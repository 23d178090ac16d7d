"""`python -m bench.grown`: MiniLM grown to the published shapes, through the whole line; makes bench/record/grown.

`run` grows the small models of sentiment.toml and qa.toml, runs the recipes of the large ones, and can be stopped and
called again. `report` reads finished artifacts, times them beside a small one, and writes rows.csv and README.md.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import engine
from bench.batch import random_batch
from bench.record import RECORDS, write_rows

RECIPES: Final = Path(__file__).parents[1] / "compression" / "recipes"
SHAPES: Final = ("distilbert", "bert-base", "bert-large")
# Task of a recipe -> run whose teacher is the small model.
SMALL: Final = {"sst2": "sentiment", "squad": "qa"}
TOKENS: Final = 128


def main(arguments: Sequence[str] | None = None) -> None:
    """Run or report, as the command line says."""
    options = _parser().parse_args(arguments)
    if options.what == "run":
        for task in options.tasks:
            for shape in options.shapes:
                train(shape, task, options.data.resolve(), options.folder.resolve(), options.threads)
    else:
        report(options.artifacts, options.small, options.record, options.rounds)


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m bench.grown", description=__doc__)
    what = made.add_subparsers(dest="what", required=True)
    run = what.add_parser("run")
    run.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets")
    run.add_argument("--folder", type=Path, default=Path(), help="where runs/ is, with sentiment and qa in it")
    run.add_argument("--shapes", nargs="+", choices=SHAPES, default=SHAPES)
    run.add_argument("--tasks", nargs="+", choices=list(SMALL), default=list(SMALL))
    run.add_argument("--threads", type=int, default=0, help="as of sparselane-compress run")
    table = what.add_parser("report")
    table.add_argument("artifacts", nargs="+", type=Path)
    table.add_argument("--small", type=Path, required=True, help="artifact of the small model to time beside")
    table.add_argument("--record", type=Path, default=RECORDS / "grown")
    table.add_argument("--rounds", type=int, default=30)
    return made


def train(shape: str, task: str, data: Path, folder: Path, threads: int) -> None:
    """Grow a small model and run its recipe, each unless it is there. Raises CalledProcessError where that fails."""
    grown, recipe = folder / "runs" / f"grown-{shape}-{task}", RECIPES / f"grown-{shape}-90-{task}.toml"
    commands: list[tuple[Path, list[Any]]] = [
        (grown, ["grow", folder / "runs" / SMALL[task] / "teacher", grown, "--to", shape]),
        (folder / "runs" / recipe.stem / "artifact", ["run", recipe, "--data", data]),
    ]
    for result, command in commands:
        if not result.is_dir():
            print(f"== {result.relative_to(folder)}", file=sys.stderr, flush=True)
            whole = [sys.executable, "-m", "compression", *map(str, command), "--threads", str(threads)]
            subprocess.run(whole, cwd=folder, check=True)


def report(artifacts: Sequence[Path], small: Path, record: Path, rounds: int) -> None:
    """Time artifacts beside the small one and write the record."""
    folders = [small, *artifacts]
    times = milliseconds(folders, rounds)
    rows = [row(folder, times[folder], times[small]) for folder in folders]
    record.mkdir(parents=True, exist_ok=True)
    write_rows(record / "rows.csv", rows)
    (record / "README.md").write_text(page(rows), encoding="utf-8")


def milliseconds(folders: Sequence[Path], rounds: int) -> dict[Path, float]:
    """Median time of one input of TOKENS tokens on one thread; the models take turns, so a busy machine is fair."""
    models = {folder: engine.load(folder, threads=1) for folder in folders}
    ids, lengths = random_batch((TOKENS,)).ragged()
    taken: dict[Path, list[float]] = {folder: [] for folder in folders}
    for _ in range(rounds):
        for folder, model in models.items():
            begin = time.perf_counter()
            model.forward(ids, lengths)
            taken[folder].append(1000 * (time.perf_counter() - begin))
    return {folder: statistics.median(values) for folder, values in taken.items()}


def row(folder: Path, taken: float, small: float) -> dict[str, Any]:
    """One line of the record, from an artifact's manifest and its time."""
    manifest = engine.read_manifest(folder).raw
    architecture, quality, size = manifest["architecture"], manifest["quality"], manifest["size"]
    return {
        "model": manifest["name"],
        "shape": "{family} {layers} x {hidden}, {heads} heads".format(**architecture),
        "task": manifest["task"]["name"],
        "zeros": round(manifest["sparsity"]["overall"], 4),
        "dataset": quality["dataset"],
        "examples": quality["examples"],
        **{key: quality[key] for key in ("metric", "dense", "sparse", "quantized")},
        "encoder_bytes": size["encoder_bytes"],
        "total_bytes": size["total_bytes"],
        "milliseconds": round(taken, 2),
        "times_small": round(taken / small, 2),
    }


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write the record's page."""
    lines = [
        "# MiniLM, grown to the published shapes",
        "",
        "These models have the shapes of DistilBERT, BERT-Base and BERT-Large, and weights **grown from MiniLM**,",
        "not the published ones: at best they know what MiniLM knows; size and speed are those of the shapes. The",
        f"first row is the small model. Times: one input of {TOKENS} tokens, one thread, median, on a busy machine:",
        "the ratio counts. Made by `python -m bench.grown report`; docs/compression.md, section Growing, says more.",
        "",
        "| model | shape | zeros | metric | dense | sparse | int8 | encoder | whole | ms | times small |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        scores = " | ".join("" if one[key] is None else f"{one[key]:.4g}" for key in ("dense", "sparse", "quantized"))
        judged = f"{one['metric']}, {one['examples']:,} of {one['dataset']}" if one["metric"] else "not in its manifest"
        lines.append(
            f"| {one['model']} | {one['shape']} | {100 * one['zeros']:.1f} % | {judged} | {scores} "
            f"| {one['encoder_bytes'] / 1e6:.1f} MB | {one['total_bytes'] / 1e6:.1f} MB "
            f"| {one['milliseconds']:.1f} | {one['times_small']:.1f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
