"""A finished checkpoint to an artifact without training: look at it, write it, verify it."""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedModel

import engine
from compression import detect
from compression.checkpoint import CheckpointError, encoder_matrices, load_tokenizer
from compression.data import find_source, read_examples
from compression.encode import Encoder, Window
from compression.evaluate import evaluate, torch_predictor
from compression.export import Origin, check_target, engine_predictor, export_model, task_of
from compression.metrics import headline
from compression.recipe import STORED, Table, Task
from compression.verify import COMPARED_WINDOWS, Verification, random_windows, verify
from engine.artifact import PART

log = logging.getLogger("sparselane")


@dataclass(frozen=True)
class Source:
    """A loaded checkpoint: `name` is where it came from, `outputs` names the rows of its head."""

    name: str
    model: PreTrainedModel
    task: Task
    outputs: Sequence[str]


@dataclass(frozen=True)
class Checks:
    """What an artifact must stand: examples to judge it on (a file or hub set, or none), zeros, engine threads.

    `table` says how a file of texts is read.
    """

    data: str = ""
    table: Table = field(default_factory=Table)
    least_sparsity: float = 0.0
    threads: int = 0


@dataclass(frozen=True)
class Conversion:
    """What was found in a checkpoint, how well the artifact agrees with it, and their scores where there was data."""

    found: list[detect.Found]
    verification: Verification
    quality: dict[str, Any]


def convert(
    source: Source,
    folder: Path,
    name: str,
    *,
    attention: str = "int8",
    embeddings: str = "int8",
    checks: Checks = Checks(),
) -> Conversion:
    """Write a checkpoint as an artifact into `folder`: its zeros are kept, the rest is rounded to int8.

    `attention`, `embeddings`: see `export_model`.

    The artifact gets its name only after it was compared with the model, see `verify`, and judged on data.

    Raises:
        CheckpointError: fewer zeros than `checks` ask for, an unknown `attention` or `embeddings`, `folder` is
        something else, or the artifact does not answer as the checkpoint does.
    """
    if attention not in ("int8", "float32"):
        raise CheckpointError(f"attention is {attention!r}; it must be int8 or float32")
    if embeddings not in STORED:
        raise CheckpointError(f"embeddings is {embeddings!r}; it must be {' or '.join(STORED)}")
    width = source.model.config.hidden_size
    if embeddings == "product" and width % PART:
        raise CheckpointError(
            f"checkpoint {source.name!r} is {width} wide; embeddings=product needs a multiple of {PART}: use int8"
        )
    check_target(folder)
    export = partial(export_model, source.model, attention=attention, embeddings=embeddings)
    model = source.model.train(False)
    found = detect.find_patterns(encoder_matrices(model))
    if detect.overall_sparsity(found) < checks.least_sparsity:
        raise CheckpointError(
            f"checkpoint {source.name!r} has {100 * detect.overall_sparsity(found):.2f} % zeros in its encoder "
            f"({detect.overall_pattern(found)}), --require-sparsity asks for {100 * checks.least_sparsity:g} %"
        )
    tokenizer = load_tokenizer(source.name)
    provenance: dict[str, Any] = {"base_checkpoint": source.name, "found": _found(found)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        draft = Path(scratch) / "draft"
        export(tokenizer.to_str(), source.task, source.outputs, Origin(name, provenance=provenance), draft)
        quality, windows, threshold = _judge(source, draft, tokenizer, checks, detect.overall_pattern(found))
        verification = verify(model, draft, windows[:COMPARED_WINDOWS], threads=checks.threads or None)
    origin = Origin(name, quality=quality, provenance=provenance | {"verified": verification.as_dict()})
    task = dataclasses.replace(source.task, no_answer_threshold=threshold)
    export(tokenizer.to_str(), task, source.outputs, origin, folder)
    return Conversion(found, verification, quality)


def _found(found: list[detect.Found]) -> dict[str, Any]:
    return {
        "sparsity": round(detect.overall_sparsity(found), 6),
        "pattern": detect.overall_pattern(found),
        "matrices": {
            matrix.name: {"sparsity": round(matrix.sparsity, 6), "pattern": matrix.pattern} for matrix in found
        },
    }


def _judge(
    source: Source, draft: Path, tokenizer: Tokenizer, checks: Checks, pattern: str
) -> tuple[dict[str, Any], list[Window], float]:
    """Score checkpoint and artifact on a data file; return the quality for the manifest, and windows to compare on.

    With them the artifact's `no_answer_threshold`: the best on these examples, which its score is measured at.
    """
    config = source.model.config
    uses_types = bool(getattr(config, "type_vocab_size", 0))
    if not checks.data:
        return {}, random_windows(config.vocab_size, source.task.window, uses_types), source.task.no_answer_threshold
    loaded = engine.load(draft, threads=checks.threads or None)
    task = task_of(loaded.manifest)
    examples = read_examples(find_source(Path(), checks.data), task, checks.table)
    windows = Encoder(tokenizer, task, uses_types=uses_types).windows(examples)
    predictors = {"checkpoint": torch_predictor(source.model), "artifact": engine_predictor(loaded)}
    metric = headline(task)
    judged = {
        name: evaluate(predict, windows, examples, task, name=name).scores for name, predict in predictors.items()
    }
    scores = {name: round(found[metric], 4) for name, found in judged.items()}
    quality = {"dataset": Path(checks.data).name, "split": "given", "examples": len(examples), "metric": metric}
    measured = "dense" if pattern == "dense" else "sparse"
    threshold = judged["artifact"]["best_f1_thresh"] if task.no_answer else 0.0
    return {**quality, measured: scores["checkpoint"], "quantized": scores["artifact"]}, windows, threshold


def name_outputs(outputs: Sequence[str], labels: str, task: str) -> tuple[str, ...]:
    """Return the names of a checkpoint's outputs: `labels`, between commas and in their order, or else its own.

    Names like LABEL_0, which many published checkpoints have, are kept with a warning. Raises CheckpointError for
    labels that are not as many, come twice or are empty, or name the start and the end of an answer.
    """
    if not labels:
        if all(name == f"LABEL_{number}" for number, name in enumerate(outputs)):
            log.warning(
                "warning: the checkpoint calls its outputs %s: the service will answer so; --labels names them, in "
                "this order",
                ", ".join(outputs[:12]),
            )
        return tuple(outputs)
    names = tuple(name.strip() for name in labels.split(","))
    if task == "question-answering" or len(names) != len(outputs) or len(set(names)) < len(names) or "" in names:
        wanted = "none for question-answering" if task == "question-answering" else f"{len(outputs)} different names"
        raise CheckpointError(f"--labels is {labels!r}; the checkpoint's outputs are {list(outputs)}: give {wanted}")
    return names


def with_window(task: Task, positions: int) -> Task:
    """Shorten a task's windows to what a model has positions for."""
    window = min(task.window, positions)
    return dataclasses.replace(task, window=window, stride=min(task.stride, window // 3))
