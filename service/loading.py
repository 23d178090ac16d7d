"""A folder of artifacts to models that serve: loaded, and proven on their own golden examples."""

import gc
import logging
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

import engine
from service.cost import measured
from service.errors import ServiceError, StartupError
from service.models import Embeddings, Model, Models
from service.pipeline import TASKS, answer_now
from service.windows import TextTokenizer, Windows

log = logging.getLogger("sparselane")


class GoldenError(Exception):
    """A model does not answer one of its golden examples as its manifest says."""


def load_models(folder: Path, threads: int | None, preferred: Sequence[str] = ()) -> Models:
    """Load and prove every artifact in a subfolder of `folder`; `threads` None is the CPU quota.

    An artifact that fails is in `failures` with the reason and does not serve; the others do. `preferred`: see Models.

    Raises:
        StartupError: no such folder, or no artifact in it; more threads than CPUs, or an ISA that the CPU lacks.
    """
    paths = artifact_paths(folder)
    serving: dict[str, Model] = {}
    failures: dict[str, str] = {}
    missing: dict[str, str] = {}
    for path in paths:
        try:
            model = load_model(path, threads)
            if model.name in serving:
                raise StartupError(f"another artifact in {folder} is called '{model.name}' too; rename one")
        except (engine.ArtifactError, StartupError, GoldenError) as error:
            manifest = _manifest(path)
            name = manifest.name if manifest else path.name
            failures[name] = f"{type(error).__name__}: {error}"
            if manifest:
                missing[name] = manifest.task.name
            log.error("model %s does not serve: %s", name, failures[name])
        # The engine's words for threads or an ISA that this machine does not have, or threads that it cannot start.
        except (ValueError, RuntimeError) as error:
            raise StartupError(str(error)) from error
        else:
            serving[model.name] = model
    gc.collect()
    engine.release_memory()
    return Models(serving, failures, preferred=preferred, missing=missing)


def artifact_paths(folder: Path) -> list[Path]:
    """Return the artifacts in subfolders of `folder`, by name.

    Raises:
        StartupError: no such folder, or no artifact in it.
    """
    if not folder.is_dir():
        raise StartupError(f"there is no models folder {folder}; set SPARSELANE_MODELS_DIR or --models-dir to one")
    # Names with a dot in front are not finished yet, or belong to whatever mounted the folder.
    paths = sorted(path.parent for path in folder.glob("[!.]*/manifest.json"))
    if not paths:
        raise StartupError(
            f"the models folder {folder} has no subfolder with a manifest.json; put an artifact there "
            "(sparselane-compress makes them), or set SPARSELANE_MODELS_DIR or --models-dir to another folder"
        )
    return paths


def artifact_name(path: Path, served: Mapping[Path, str]) -> str:
    """Return the name of an artifact's model.

    Where the manifest cannot be read it is the model that its folder `served`, or has the folder's name.
    """
    manifest = _manifest(path)
    return manifest.name if manifest else served.get(path, path.name)


def _manifest(path: Path) -> engine.Manifest | None:
    try:
        return engine.read_manifest(path)
    except engine.ArtifactError:
        return None


def artifact_version(path: Path) -> str:
    """Return the sha256 of an artifact's manifest, which names its files by theirs; "" where it cannot be read."""
    try:
        return sha256((path / "manifest.json").read_bytes()).hexdigest()
    except OSError:
        return ""


def load_model(path: Path, threads: int | None) -> Model:
    """Load one artifact, measure what it costs to run, which also warms it up, and replay its golden examples.

    Raises:
        engine.ArtifactError, ValueError, RuntimeError: see `engine.load`. StartupError: the tokenizer cannot be used.
        GoldenError: an answer is not what the manifest promises.
    """
    began = perf_counter()
    version = artifact_version(path)
    loaded = engine.load(path, threads=threads)
    manifest = loaded.manifest
    task = manifest.task
    tokenizer = TextTokenizer(path / "tokenizer.json", manifest.architecture.vocabulary)
    loaded.check_files()  # the tokenizer is the one that was checked, and of these weights
    read = perf_counter()
    model = Model(
        name=manifest.name,
        task=task.name,
        labels=tuple(task.labels),
        windows=Windows(tokenizer, task.window, task.stride, manifest.architecture.positions),
        max_answer_tokens=task.max_answer_tokens,
        uses_types=manifest.architecture.types > 0,
        forward=loaded.forward,
        details={
            "precision": "int8",
            "sparsity": f"{manifest.sparsity['overall']:.4f}",
            "sha256": str(manifest.files["model.safetensors"]["sha256"]),
            "isa": loaded.isa,
            "threads": str(loaded.threads),
        },
        multi_label=task.multi_label,
        pairs=task.pairs,
        no_answer_threshold=task.no_answer_threshold,
        version=version,
        manifest=manifest,
        folder=path,
        embeddings=Embeddings(
            manifest.architecture.vocabulary, manifest.architecture.positions, manifest.architecture.types
        ),
        cost=measured(loaded.forward, task.window, tokenizer.cls),
        load_seconds=read - began,
    )
    proving = perf_counter()
    replay(model, manifest.golden)
    log.info(
        "model %s: %s, sparsity %s, %s, %d threads; loaded in %.2f s, %d golden examples right in %.2f s",
        *(model.name, model.task, model.details["sparsity"], loaded.isa, loaded.threads),
        *(read - began, len(manifest.golden), perf_counter() - proving),
    )
    return model


def replay(model: Model, golden: tuple[Mapping[str, Any], ...]) -> None:
    """Answer golden examples through the whole pipeline. Raises GoldenError at the first wrong one."""
    task = TASKS[model.task]
    if not golden:
        log.warning("model %s has no golden examples: nothing proves that it answers as when it was made", model.name)
    for number, example in enumerate(golden):
        try:
            item = task.item.validate_python(example["input"])
            entries, _ = answer_now(task, model, item, task.parameters())
        except (ServiceError, ValueError, KeyError) as error:
            raise GoldenError(f"golden example {number} cannot be answered: {error}") from error
        given = task.golden(entries)
        if given != example["expected"]:
            raise GoldenError(f"golden example {number} gives {given}, the manifest expects {example['expected']}")
