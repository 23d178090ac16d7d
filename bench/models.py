"""`python -m bench.models`: what are the embedded models worth? Makes docs/models.md and their manifests' numbers.

`run`, the default, measures every artifact through the engine, one measurement after another; what is there of the same
weights is not measured again. Then it writes the numbers into the artifacts' manifests and cards, the README's table
and the page. `report` writes the page alone, from bench/record/models. `errors` shows the hardest errors with texts.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from transformers.utils import logging

import engine
from bench import results
from bench.judge import records
from bench.judge.measurements import MEASUREMENTS, floats
from bench.judge.page import BEGIN, END, page
from bench.judge.plots import draw_reliability
from bench.judge.quality import quality
from bench.judge.show import show_errors
from bench.judge.subject import JudgingError, Subject
from bench.record import machine_text
from bench.results import ROOT, with_results
from compression.card import model_card
from compression.checkpoint import CheckpointError
from compression.examples import DataError
from compression.pack import write_quality
from compression.recipe import RecipeError

EMBEDDED: Final = ROOT / "service" / "models"
RECORD: Final = ROOT / "bench" / "record" / "models"
PAGE: Final = ROOT / "docs" / "models.md"


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line says; what is wrong with data or artifact is one line and exit status 1."""
    options = _parser().parse_args(arguments)
    try:
        if options.what == "errors":
            show_errors(options.models, options.data, options.record)
            return
        if options.what == "run":
            _run(options)
        write_page(options.record, options.page)
    except (DataError, CheckpointError, JudgingError, RecipeError, engine.ArtifactError) as error:
        sys.exit(f"error: {error}")


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m bench.models", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("what", nargs="?", choices=("run", "report", "errors"), default="run")
    made.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets")
    made.add_argument("--models", type=Path, default=EMBEDDED, help="folder with an artifact per subfolder")
    made.add_argument(
        "--teachers",
        nargs="+",
        default=[],
        metavar="NAME=RUN",
        help="run folders that made artifacts: their teacher and sparse model, float32, are judged beside (minutes)",
    )
    made.add_argument("--only", nargs="+", choices=list(MEASUREMENTS), default=list(MEASUREMENTS))
    made.add_argument("--again", action="store_true", help="measure what is there, too")
    made.add_argument("--record", type=Path, default=RECORD, help="folder of the rows")
    made.add_argument("--page", type=Path, default=PAGE)
    return made


def _run(options: argparse.Namespace) -> None:
    load_before = os.getloadavg()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    folders = sorted(path.parent for path in options.models.glob("*/manifest.json"))
    if not folders:
        raise JudgingError(f"{options.models}: holds no folder with a manifest.json; give another --models")
    runs = _runs(options.teachers, [folder.name for folder in folders])
    timed = False
    for folder in folders:
        name, measured = _measure(folder, options, runs.get(folder.name))
        timed = timed or "latency" in measured
        write_manifest(folder, records.tables(options.record, name))
    if options.models.resolve() == EMBEDDED:
        results.main()
    if timed:
        text = machine_text("python -m bench.models --data DATA", {"main": Path(sys.executable)}, load_before)
        (options.record / "machine.txt").write_text(text, encoding="utf-8")


def _runs(given: Sequence[str], names: Sequence[str]) -> dict[str, Path]:
    found = {name: Path(folder) for name, _, folder in (one.partition("=") for one in given)}
    for name, folder in found.items():
        if name not in names or not (folder / "teacher").is_dir():
            raise JudgingError(
                f"--teachers {name}={folder}: must be NAME=RUN, a model ({', '.join(names)}) and a run folder with "
                "teacher/ in it"
            )
    return found


def _measure(folder: Path, options: argparse.Namespace, run: Path | None) -> tuple[str, list[str]]:
    """Measure what is asked for and not there; return the model's name, and what was measured."""
    subject = Subject(folder, options.data)
    name = subject.manifest.name
    # The facts say which weights all other rows are about.
    wanted = {key: MEASUREMENTS[key] for key in MEASUREMENTS if key in options.only or key == "facts"}
    if run:
        wanted["floats"] = partial(floats, run=run)
    done = []
    for measurement, measure in wanted.items():
        # Facts cost nothing, and a manifest can say more of the same weights than before.
        fresh = measurement != "facts" and records.is_done(options.record, name, measurement, subject.weights)
        if options.again or not fresh:
            print(f"{name}: {measurement}", file=sys.stderr, flush=True)
            records.keep(options.record, name, measurement, subject.weights, measure(subject))
            done.append(measurement)
    return name, done


def write_manifest(folder: Path, tables: records.Tables) -> None:
    """Write measured numbers into an artifact's manifest and card, unless they say so or something is not measured."""
    before = engine.read_manifest(folder).raw
    if {"scores", "calibration", "lengths", "robustness"} <= tables.keys():
        measured = quality(before["quality"], tables)
        card = model_card({**before, "quality": measured})
        if (measured, card) != (before["quality"], (folder / "README.md").read_text(encoding="utf-8")):
            write_quality(folder, measured, card)


def write_page(record: Path, target: Path) -> None:
    """Write page and plots from the rows alone."""
    for name in records.models(record):
        draw_reliability(record / name / "reliability.png", name, records.tables(record, name))
    before = target.read_text(encoding="utf-8") if target.is_file() else f"{BEGIN}\n{END}\n"
    text = with_results(before, page(record), BEGIN, END)
    unfinished = target.with_suffix(".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.rename(target)


if __name__ == "__main__":
    main()
