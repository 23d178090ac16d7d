"""`python -m bench.accuracy`: how much quality each way to prune keeps; makes docs/results.md from real runs.

`run` trains every row that is not there yet, one after another, and can be stopped and called again; `report` puts the
finished runs into bench/record/accuracy/rows.csv, beside rows of other seeds that are there, and writes the tables.
bench/methods.py has the recipes; who changes the budget of a task deletes its rows.
"""

import argparse
import itertools
import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench.methods import BUDGETS, METHODS, recipe, run_folder
from bench.record import read_rows, write_rows
from bench.results import with_results
from bench.side_by_side import Job, run_jobs
from compression.read_recipe import parse_recipe

ROOT: Final = Path(__file__).parents[1]
ROWS: Final = ROOT / "bench" / "record" / "accuracy" / "rows.csv"
RESULTS: Final = ROOT / "docs" / "results.md"
BEGIN, END = "<!-- tables: python -m bench.accuracy report -->", "<!-- end of tables -->"
TITLES: Final = {
    "sst2": ("SST-2 dev, accuracy", 100.0),
    "ner": ("CoNLL-2003 testa, entity F1", 100.0),
    "squad": ("SQuAD v1.1 dev, F1", 1.0),
}

Row = Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run or report, as the command line says."""
    options = _parser().parse_args(arguments)
    if options.what == "run":
        data = options.data.resolve()
        os.chdir(options.folder)  # recipes name each other's checkpoints from there
        wanted = jobs(options.tasks, options.methods, options.seeds)
        for job in run_jobs(wanted, data, options.at_once, options.threads, record=options.record_steps):
            print(f"not done: {options.folder / job.folder}, see run.log there, if it could begin")
    else:
        rows = merged(read_rows(ROWS), list(collect(options.folder)))
        write_rows(ROWS, rows)
        RESULTS.write_text(
            with_results(RESULTS.read_text(encoding="utf-8"), tables(rows), BEGIN, END), encoding="utf-8"
        )


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m bench.accuracy", description=__doc__)
    made.add_argument("what", choices=("run", "report"))
    made.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets")
    made.add_argument("--folder", type=Path, default=Path(), help="where runs/ is, the language models' too")
    made.add_argument("--tasks", nargs="+", choices=list(BUDGETS), default=list(BUDGETS))
    made.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    made.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    made.add_argument("--at-once", type=int, default=1, help="rows at a time: on a large GPU several")
    made.add_argument("--threads", type=int, default=1, help="CPU threads of each row")
    made.add_argument("--record-steps", action="store_true", help="as of sparselane-compress run")
    return made


def jobs(tasks: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """Return the rows to run, seed by seed; each waits for its teacher, and for its language model.

    All rows have the teacher of the dense one, and its windows.
    """
    made = []
    for seed, task, method in itertools.product(seeds, tasks, methods):
        text = recipe(method, task, seed)
        read = parse_recipe(text)
        needs = [name for name in (read.checkpoint, read.teacher and read.teacher.checkpoint) if name]
        paths = tuple(Path(name) for name in needs if not name.startswith("package:"))
        others = [] if method == "dense" else [other for other in METHODS if other != method]
        siblings = tuple(Path(run_folder(other, task, seed)) for other in others)
        made.append(Job(Path(run_folder(method, task, seed)), text, paths, siblings=siblings))
    return made


def collect(folder: Path) -> Iterable[Row]:
    """Read what finished runs' manifests say: a row for each method, task and seed."""
    for task in BUDGETS:
        for method in METHODS:
            for manifest in sorted(folder.glob(f"{run_folder(method, task, 0)[:-1]}*/artifact/manifest.json")):
                found = json.loads(manifest.read_text(encoding="utf-8"))
                quality, minutes = found["quality"], found["provenance"]["minutes"]
                yield {
                    "method": method,
                    "task": task,
                    "seed": found["provenance"]["seeds"][0],
                    "metric": quality["metric"],
                    "examples": quality["examples"],
                    "dense": quality["dense"],
                    "float32": quality["sparse"],
                    "int8": quality["quantized"],
                    "sparsity": round(found["sparsity"]["overall"], 4),
                    "minutes": round(sum(minutes.values()), 1),
                }


def merged(there: Sequence[Row], found: Sequence[Row]) -> list[Row]:
    """Return all rows in the order of the tables, a finished run's in place of the one that was there."""
    newest = {(row["task"], row["method"], int(row["seed"])): row for row in (*there, *found)}
    tasks, methods = list(BUDGETS), list(METHODS)
    return [newest[key] for key in sorted(newest, key=lambda k: (tasks.index(k[0]), methods.index(k[1]), k[2]))]


def tables(rows: Sequence[Row]) -> str:
    """Return a Markdown table for each task: mean, spread and the relative loss to the dense model of the same seed."""
    parts = []
    for task, (title, factor) in TITLES.items():
        parts += [
            f"### {title}",
            "",
            "| method | seeds | float32 | loss | int8 | loss | zeros | minutes |",
            "|---|---|---|---|---|---|---|---|",
            *(
                _line(name, [row for row in rows if row["task"] == task and row["method"] == method], factor)
                for method, name in METHODS.items()
            ),
            "",
        ]
    return "\n".join(parts).rstrip()


def _line(name: str, rows: Sequence[Row], factor: float) -> str:
    if not rows:
        return f"| {name} | not run | | | | | | |"
    cells = []
    for precision in ("float32", "int8"):
        scores = [factor * float(row[precision]) for row in rows]
        losses = [100 * (1 - float(row[precision]) / float(row["dense"])) for row in rows]
        spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
        cells += [f"{statistics.mean(scores):.2f}{spread}", f"{statistics.mean(losses):.1f} %"]
    zeros = statistics.mean(float(row["sparsity"]) for row in rows)
    minutes = statistics.mean(float(row["minutes"]) for row in rows)
    return f"| {name} | {len(rows)} | {' | '.join(cells)} | {100 * zeros:.1f} % | {minutes:.0f} |"


if __name__ == "__main__":
    main()
