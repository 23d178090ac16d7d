"""What a language recipe would do, said before it does it: text, steps, tokens, memory, disk, time from a few steps."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import torch

from compression import processes
from compression.files import free_bytes, shown_bytes
from compression.language import Body, LanguageLoss, language_matrices, load_language_model
from compression.layers import keep_layers
from compression.loop import open_loop
from compression.objective import collate
from compression.plan import (
    TRIAL_TOKENS,
    TRIALS,
    Cost,
    available_memory,
    criterion_memory,
    fixed_memory,
    kept_by,
    shown_duration,
    time_steps,
)
from compression.pretrain import PreparedText, disk_needed, make_stage, prepare
from compression.recipe import LanguageRecipe, Training

# Tokenizing so many takes seconds, where a whole corpus takes minutes.
CHECKED_DOCUMENTS = 1000


def describe(recipe: LanguageRecipe, recipe_text: str, data: Path, scratch: Path, folder: Path) -> list[str]:
    """Check a recipe on the first documents of its text and say what a run in `folder` would do and need.

    Raises:
        RecipeError, DataError, CheckpointError: see `pretrain.prepare`, which works in `scratch` here.
    """
    few = min(recipe.text.documents or CHECKED_DOCUMENTS, CHECKED_DOCUMENTS)
    run = prepare(replace(recipe, text=replace(recipe.text, documents=few)), recipe_text, data, scratch)
    windows = run.train_windows
    matrices = language_matrices(load_language_model(recipe.checkpoint, recipe.task, new_heads=True), recipe.task)
    weights = sum(matrix.weight.numel() for matrix in matrices.values())
    lines = [
        f"{recipe.name}: {recipe.task.name} from {recipe.checkpoint}",
        f"in the first {windows.corpus.documents:,} documents: {len(windows.corpus.tokens):,} tokens, "
        f"{len(windows):,} windows to train on, {len(run.windows):,} held out",
        f"{weights:,} weights in {len(matrices)} matrices are pruned to {100 * recipe.prune.sparsity:g} % zeros",
    ]
    # Python, torch and the text as they are now; on a GPU none of it counts.
    program = {} if torch.cuda.is_available() else {"program": int(psutil.Process().memory_info().rss)}
    total, highest = 0.0, 0
    for name, training in recipe.stages():
        cost = measure(run, name, training)
        steps = training.steps or int(np.ceil(training.epochs * len(windows) / training.batch_size))
        tokens = round(steps * training.batch_size * float(np.mean(windows.lengths)))
        seconds = cost.fixed * steps * training.gradient_accumulation + cost.per_token * tokens
        memory = program | cost.memory
        total, highest = total + seconds, max(highest, sum(memory.values()))
        lines += [
            f"{name:<10} {steps:>9,} steps of {training.batch_size} windows, {tokens:,} tokens: "
            f"{shown_duration(seconds)}",
            f"{'':20} {shown_bytes(sum(memory.values()))} of memory: "
            + ", ".join(f"{key} {shown_bytes(value)}" for key, value in memory.items()),
        ]
    return [
        *lines,
        f"in all     {shown_duration(total)} of training on this machine with {torch.get_num_threads()} thread(s), "
        f"from {TRIALS} timed steps of 2 sizes a stage; tokenizing, mask updates and evaluation come on top"
        + (", and epochs count the first documents alone" if any(one.epochs for _, one in recipe.stages()) else ""),
        f"memory     {shown_bytes(highest)} at most; {shown_bytes(available_memory())} are available",
        f"disk       {shown_bytes(disk_needed(replace(run, folder=folder)))} and the text's tokens; "
        f"{shown_bytes(free_bytes(folder))} are free",
    ]


def measure(run: PreparedText, name: str, training: Training) -> Cost:
    """Time real steps of a stage and count the bytes that a part of its batches needs, as `plan.measure`."""
    recipe = run.recipe
    source = (recipe.teacher.checkpoint if name == "teacher" and recipe.teacher else "") or recipe.checkpoint
    model = load_language_model(source, recipe.task, dropout=training.dropout, new_heads=True)
    teacher = None
    if name == "prune":
        taught_by = (recipe.teacher.checkpoint if recipe.teacher else "") or recipe.checkpoint
        teacher = load_language_model(taught_by, recipe.task, new_heads=True)
        if recipe.prune.keep_layers:
            keep_layers(model, recipe.prune.keep_layers)
    whole = replace(training, gradient_accumulation=1)  # what is timed is one part of a batch
    stage = replace(make_stage(run, model, name, teacher), schedule=None, training=whole)  # no masks: they cost little
    loop = open_loop(model, stage, steps=1000)
    part = -(-training.batch_size // (training.gradient_accumulation * processes.state().num_processes))
    trial = part if torch.cuda.is_available() else min(part, max(2, TRIAL_TOKENS // recipe.task.window))
    fixed, per_token = time_steps(loop, ([0], list(range(min(trial, len(run.train_windows))))))

    def kept(windows: int) -> int:
        loss = stage.language_loss
        assert isinstance(loss, LanguageLoss)
        batch = collate([run.train_windows[number] for number in range(windows)], loop.accelerator.device)
        with loop.accelerator.autocast():
            return kept_by(lambda: loss(Body(model), batch)[0], model)

    one, two = kept(1), kept(2)
    memory: Mapping[str, int] = fixed_memory(model, training, teacher, masked=name == "prune")
    if name == "prune":
        memory = {**memory, **criterion_memory(recipe.prune, language_matrices(model, recipe.task))}
    return Cost(fixed, per_token, {**memory, "activations": one + (two - one) * (part - 1)})
