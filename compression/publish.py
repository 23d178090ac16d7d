"""The last step of a run: the quantized checkpoint becomes an artifact, judged through the engine."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import engine
from compression import processes, prune
from compression.checkpoint import encoder_matrices, load_model, model_labels
from compression.encode import Encoder
from compression.export import Origin, engine_predictor, export_model
from compression.files import remove
from compression.golden import answer_golden
from compression.metrics import headline
from compression.plots import draw_run
from compression.run import Prepared, full_quality, judge, sparse_folder
from compression.temperature import WINDOWS, fit_temperature
from compression.train import append_metrics, read_metrics
from compression.verify import COMPARED_WINDOWS, predict_all, verify


def publish(run: Prepared, threads: int | None = None) -> Path:
    """Export, judge and document a finished run; return the artifact's folder `run.folder`/artifact.

    The artifact is first written without quality and golden answers, since both are read off the artifact itself
    through the engine, then written again with them; so is the threshold below which a question has an answer.

    Raises:
        CheckpointError: the artifact does not compute what the trained model does. TrainingError: the disk is full.
    """
    processes.main_only(lambda: _publish(run, threads))
    return run.folder / "artifact"


def _publish(run: Prepared, threads: int | None) -> None:
    recipe, task = run.recipe, run.recipe.task
    model = load_model(str(run.folder / "quantized"), task)
    outputs = model_labels(task)
    tokenizer_json = run.tokenizer.to_str()
    draft, final = run.folder / "artifact.draft", run.folder / "artifact"
    for left_by_a_kill in run.folder.glob(".artifact*"):
        remove(left_by_a_kill)
    embeddings = recipe.quantize.embeddings
    export_model(model, tokenizer_json, task, outputs, Origin(recipe.name), draft, embeddings=embeddings)
    predict = engine_predictor(engine.load(draft, threads=threads))
    judged = judge(run, predict, "artifact")
    append_metrics(run.folder, {"stage": "artifact", "full": judged})
    if task.no_answer:
        task = dataclasses.replace(task, no_answer_threshold=judged["best_f1_thresh"])
    encoder = Encoder(run.tokenizer, task, uses_types=bool(getattr(model.config, "type_vocab_size", 0)))
    # The model was trained in int8: what it does in float32 is no measure.
    verified = verify(model, draft, run.windows[:COMPARED_WINDOWS], threads=threads, rounding=math.inf)
    temperature = 1.0
    if task.name != "question-answering":  # see fit_temperature
        few = run.windows[:WINDOWS]
        temperature = fit_temperature(few, predict_all(predict, few), task)
        with torch.no_grad():
            for parameter in model.get_submodule("classifier").parameters():
                parameter.div_(temperature)
    origin = Origin(
        recipe.name,
        quality=_quality(run, judged),
        provenance=_provenance(run) | {"verified": verified.as_dict(), "temperature": temperature},
        golden=answer_golden(predict, encoder, recipe.golden),
    )
    export_model(model, tokenizer_json, task, outputs, origin, final, embeddings=embeddings)
    draw_run(run.folder, prune.sparsity(encoder_matrices(model)))
    remove(draft)


def _quality(run: Prepared, judged: Mapping[str, float]) -> dict[str, Any]:
    recipe, metric = run.recipe, headline(run.recipe.task)
    scores = {
        "dense": full_quality(run, run.folder / "teacher"),
        "sparse": full_quality(run, sparse_folder(run)),
        "quantized": judged,
    }
    return {
        "dataset": recipe.data.dataset,
        "split": recipe.data.split,
        "examples": len(run.examples),
        "metric": metric,
        **{model: round(found[metric], 4) for model, found in scores.items()},
        "scores": {model: {name: round(value, 4) for name, value in found.items()} for model, found in scores.items()},
    }


def _provenance(run: Prepared) -> dict[str, Any]:
    recipe = run.recipe
    return {
        "base_checkpoint": recipe.checkpoint,
        "recipe": (run.folder / "recipe.toml").read_text(encoding="utf-8"),
        "seeds": [recipe.seed],
        "data": [{"name": s.name, "licence": s.licence, "source": s.source} for s in recipe.data.sources],
        "minutes": training_minutes(list(read_metrics(run.folder))),
    }


def training_minutes(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Sum the wall-clock minutes of each stage over all its sessions."""
    minutes: dict[str, float] = {}
    for line in lines:
        if "minutes" in line:
            minutes[line["stage"]] = round(minutes.get(line["stage"], 0.0) + line["minutes"], 2)
    return minutes
