"""`make models`, or `python -m bench.embedded`: makes the embedded models, from checkpoint to judged artifact.

Runs their recipes, puts each finished artifact into service/models and judges it there (bench/models.py). Takes hours;
what was stopped goes on where it was, what is done is not done again.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import engine
from bench import models
from bench.results import ROOT
from compression.data import find_source, read_examples, read_training
from compression.examples import DataError
from compression.pack import put_in_place
from compression.read_recipe import parse_recipe
from compression.recipe import Recipe, RecipeError
from compression.unlabelled import read_unlabelled

RECIPES: Final = ROOT / "compression" / "recipes"
NAMES: Final = ("intent", "ner", "sentiment", "qa")  # the quick ones first


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line says; what is wrong with a recipe or its data is one line and exit status 1."""
    options = _parser().parse_args(arguments)
    try:
        for name in options.names:
            check(options.recipes / f"{name}.toml", options.data)
    except (DataError, RecipeError, OSError) as error:
        sys.exit(f"error: {error}")
    for name in options.names:
        recipe, run = options.recipes / f"{name}.toml", options.runs / name
        artifact = train(recipe, options.data, run, options.threads, record=options.record_steps)
        if embed(artifact, options.models / name):
            print(f"{options.models / name}: replaced by {artifact}", file=sys.stderr)
    if not options.no_judge:
        where = {"--data": options.data}
        if options.models != models.EMBEDDED:
            folder = options.models
            where |= {"--models": folder, "--record": folder / "record", "--page": folder / "models.md"}
        models.main([str(word) for pair in where.items() for word in pair])


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m bench.embedded", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("names", nargs="*", default=NAMES, help="recipes (default: %(default)s)")
    made.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets")
    made.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the run folders")
    made.add_argument("--recipes", type=Path, default=RECIPES)
    made.add_argument(
        "--models", type=Path, default=models.EMBEDDED, help="where the artifacts go; elsewhere, their judgement too"
    )
    made.add_argument("--threads", type=int, default=0, help="as of sparselane-compress run")
    made.add_argument("--record-steps", action="store_true", help="as of sparselane-compress run")
    made.add_argument("--no-judge", action="store_true", help="leave manifests, README and docs/models.md as they are")
    return made


def check(recipe: Path, data: Path) -> None:
    """Read a recipe and its data, before hours of work on the recipes before it.

    Raises RecipeError or OSError: no such recipe, or not one of a task. DataError: a file is missing or wrong.
    """
    read = parse_recipe(recipe.read_text(encoding="utf-8"), str(recipe))
    if not isinstance(read, Recipe):
        raise RecipeError(f"{recipe}: a language model's recipe gives no artifact; name recipes of tasks")
    read_training(data, read.task, read.data)
    read_unlabelled(data, read.data, read.seed)
    read_examples(find_source(data, read.data.validation), read.task, read.data.table)


def train(recipe: Path, data: Path, run: Path, threads: int, *, record: bool = False) -> Path:
    """Run a recipe to its end, in a process of its own; return the artifact. Exits as a run that failed did."""
    command = [sys.executable, "-m", "compression", "run", recipe, "--data", data, "--run-folder", run]
    more = ["--threads", str(threads), *(["--record-steps"] if record else [])]
    done = subprocess.run([*map(str, command), *more], check=False)
    if done.returncode:
        sys.exit(done.returncode if done.returncode > 0 else 128 - done.returncode)
    return run / "artifact"


def embed(artifact: Path, target: Path) -> bool:
    """Copy an artifact to `target`, as a whole; return whether its weights or recipe are others than those there."""
    if target.is_dir() and _identity(target) == _identity(artifact):
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        put_in_place(shutil.copytree(artifact, scratch / "artifact"), target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return True


def _identity(artifact: Path) -> tuple[str, str]:
    manifest = engine.read_manifest(artifact)
    return str(manifest.files["model.safetensors"]["sha256"]), str(manifest.provenance["recipe"])


if __name__ == "__main__":
    main()
