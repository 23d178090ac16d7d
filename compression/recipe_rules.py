"""Which values a recipe may hold: every rule is one line with the key, the value found and what is allowed."""

import dataclasses
import difflib
import itertools
import math
import re

from compression.recipe import (
    LANGUAGE_TASK,
    STORED,
    Data,
    Distillation,
    Fisher,
    LanguageRecipe,
    Prune,
    Recipe,
    RecipeError,
    Table,
    Task,
    Training,
    metrics_of,
    n_of_m,
)
from engine.artifact import NAME

TASKS = ("question-answering", "text-classification", "token-classification")
SCHEDULES = ("linear", "cyclic", "rewinding")
PRECISIONS = ("no", "bf16", "fp16")
CRITERIA = ("magnitude", "movement", "obert")
SCOPES = ("matrix", "global")
PATTERNS = ("unstructured", "1x4", "4x1", "2:4")  # and any other N:M
# numpy's seeds have 32 bits, and every stage adds its number.
SEEDS = 2**32 - 100
_LANGUAGE_ONLY = f"it is for {LANGUAGE_TASK} alone"


def check_recipe(recipe: Recipe | LanguageRecipe) -> None:
    """Check every value. Raises RecipeError for the first one that breaks a rule."""
    _require(0 <= recipe.seed < SEEDS, "seed", recipe.seed, f"in [0, {SEEDS})")
    for name, training in recipe.stages():
        _check_training(_table_of(name), training)
    if recipe.teacher and not recipe.teacher.trains:
        taken = bool(recipe.teacher.checkpoint) and not recipe.teacher.learning_rate
        limit = "with epochs or steps; without them, with a fine-tuned 'checkpoint' and no learning_rate"
        _require(taken, "teacher", recipe.teacher.checkpoint, limit)
    if recipe.prune:
        _check_prune(recipe.prune)
    if isinstance(recipe, LanguageRecipe):
        _check_language(recipe)
    else:
        _check_task_recipe(recipe)


def check_task(task: Task, *, labels: bool = True) -> None:
    """Check a task's values; its labels only where the recipe gives them. Raises RecipeError."""
    if task.name not in TASKS:
        _check_choice("task.name", task.name, (*TASKS, LANGUAGE_TASK))
    if labels and task.name == "question-answering":
        _require(not task.labels, "task.labels", list(task.labels), "absent for question answering")
    elif labels:
        fewest = 2 if task.name == "text-classification" else 1
        _require(len(task.labels) >= fewest, "task.labels", list(task.labels), f"at least {fewest} names")
        _require(len(set(task.labels)) == len(task.labels), "task.labels", list(task.labels), "without repetition")
    _check_kind(task, labels=labels)
    _require(task.window >= 16, "task.window", task.window, ">= 16 tokens")
    _require(0 <= task.stride < task.window - 8, "task.stride", task.stride, f"in [0, {task.window - 8})")
    longest = task.window if task.name == "question-answering" else math.inf
    limit = f"in [1, {task.window}], the window"
    _require(1 <= task.max_answer_tokens <= longest, "task.max_answer_tokens", task.max_answer_tokens, limit)
    _require(all(task.labels) or not labels, "task.labels", list(task.labels), "without an empty one")


def _check_kind(task: Task, *, labels: bool) -> None:
    for key in ("pairs", "multi_label", "metric"):
        value, text = getattr(task, key), task.name == "text-classification"
        _require(text or not value, f"task.{key}", value, "absent: it is for text classification")
    answers = task.name == "question-answering"
    _require(answers or not task.no_answer, "task.no_answer", True, "absent: it is for question answering")
    threshold = task.no_answer_threshold
    _require(task.no_answer or not threshold, "task.no_answer_threshold", threshold, "absent without task.no_answer")
    _require(math.isfinite(threshold), "task.no_answer_threshold", threshold, "finite")
    if task.metric:
        allowed = metrics_of(task)
        _require(task.metric in allowed or not labels, "task.metric", task.metric, f"one of {allowed} for these labels")


def _check_task_recipe(recipe: Recipe) -> None:
    limit = "at most 64 of a-z 0-9 . _ -, beginning with a letter or digit: the artifact's name, and the service's"
    _require(re.fullmatch(NAME, recipe.name) is not None, "name", recipe.name, limit)
    check_task(recipe.task)
    _check_data(recipe.data, recipe.task)
    if (recipe.prune is None) == (recipe.transfer is None):
        found = "both" if recipe.prune else "neither"
        raise RecipeError(f"a recipe has 'prune' (a dense checkpoint) or 'transfer' (a sparse one); found {found}")
    dense = recipe.teacher.checkpoint
    why = "given: the recipe's own checkpoint is sparse, the teacher's is dense"
    _require(recipe.transfer is None or bool(dense), "teacher.checkpoint", dense, why)
    for stage, given in (("prune", recipe.prune), ("transfer", recipe.transfer), ("quantize", recipe.quantize)):
        if given:
            key, distillation = f"{stage}.distillation", given.distillation
            _check_distillation(key, distillation)
            _require(not distillation.masked_only, f"{key}.masked_only", True, f"false: {_LANGUAGE_ONLY}")
            taught = not recipe.data.unlabelled or distillation.teacher > 0
            _require(taught, f"{key}.teacher", distillation.teacher, "> 0: data.unlabelled has no other answers")
    quantize = recipe.quantize
    _check_choice("quantize.embeddings", quantize.embeddings, STORED)
    for training in (quantize.training, *quantize.rewinds):
        frozen = training.freeze_embeddings or quantize.embeddings == "int8"
        limit = "'int8', or freeze_embeddings = true in quantize.training and each rewind"
        _require(frozen, "quantize.embeddings", quantize.embeddings, limit)
    for number, golden in enumerate(recipe.golden):
        keys = {key for key, value in dataclasses.asdict(golden).items() if value}
        wanted = {"question", "context"} if recipe.task.name == "question-answering" else {"text"}
        wanted |= {"text_pair"} if recipe.task.pairs else set()
        limit = f"a table of {sorted(wanted)} for {recipe.task.name}"
        _require(keys == wanted, f"golden[{number}]", sorted(keys), limit)


def _check_data(data: Data, task: Task) -> None:
    squad = task.name == "question-answering"
    _require(squad or not data.leave_out, "data.leave_out", list(data.leave_out), "absent: it is for SQuAD files")
    if data.unlabelled:
        single = not squad and not task.pairs
        why = "absent: it is for text and token classification without pairs"
        _require(single, "data.unlabelled", data.unlabelled, why)
        _require(bool(data.unlabelled.files), "data.unlabelled.files", [], "at least one file")
        readable = any(name.endswith(".json") for name in data.unlabelled.files) or not data.unlabelled.sources
        _require(readable, "data.unlabelled.files", list(data.unlabelled.files), "a .json file where there are sources")
        _require(data.unlabelled.sentences >= 1, "data.unlabelled.sentences", data.unlabelled.sentences, ">= 1")
    for key in ("train_limit", "validation_limit"):
        _require(getattr(data, key) >= 0, f"data.{key}", getattr(data, key), ">= 0 (0 = all)")
    splits = [data.split, *(more.split for more in data.more_validation)]
    _require(len(set(splits)) == len(splits), "data.split and data.more_validation", splits, "without repetition")
    table = data.table
    _require(table == Table() or task.name == "text-classification", "data.table", table, "absent for this task")
    _require(task.pairs or not table.text_pair, "data.table.text_pair", table.text_pair, "absent without task.pairs")
    named = bool(table.text) == bool(table.text_pair) or not task.pairs
    _require(named, "data.table.text, text_pair", (table.text, table.text_pair), "named both or neither")
    _require(table.separator != "", "data.table.separator", table.separator, "at least one character")
    _require(table.bad_lines >= 0, "data.table.bad_lines", table.bad_lines, ">= 0")


def _check_language(recipe: LanguageRecipe) -> None:
    task, text = recipe.task, recipe.text
    _require(task.name == LANGUAGE_TASK, "task.name", task.name, f"{LANGUAGE_TASK!r} in a recipe with 'text'")
    _require(task.window >= 16, "task.window", task.window, ">= 16 tokens")
    _require(0 < task.masked < 1, "task.masked", task.masked, "in (0, 1), a share of the tokens")
    _require(bool(text.files), "text.files", list(text.files), "at least one file")
    _require(0 < text.validation < 1, "text.validation", text.validation, "in (0, 1), a share of the documents")
    _require(0 <= text.short <= 1, "text.short", text.short, "in [0, 1], a share of the windows")
    _require(text.documents >= 0, "text.documents", text.documents, ">= 0 (0 = all)")
    _require(text.validation_windows >= 0, "text.validation_windows", text.validation_windows, ">= 0 (0 = all)")
    _check_distillation("prune.distillation", recipe.prune.distillation)
    for name, training in recipe.stages():
        # The head's gradients are taken before fp16's loss scale applies, and would underflow.
        key, precision = f"{_table_of(name)}.mixed_precision", training.mixed_precision
        _require(precision != "fp16", key, precision, f"'bf16' or 'no' for {task.name}")


def _table_of(stage: str) -> str:
    """The key of a stage's training in the recipe."""
    if stage.startswith("rewind-"):
        return f"quantize.rewinds[{int(stage.removeprefix('rewind-')) - 1}]"
    return "teacher" if stage == "teacher" else f"{stage}.training"


def _check_training(key: str, training: Training) -> None:
    length = (training.epochs, training.steps)
    one = min(length) == 0 < max(length) < math.inf
    _require(one, f"{key}.epochs, {key}.steps", length, "one of the two, > 0 and finite")
    _require(0 < training.learning_rate < 1, f"{key}.learning_rate", training.learning_rate, "in (0, 1)")
    _require(training.batch_size >= 1, f"{key}.batch_size", training.batch_size, ">= 1")
    _require(0 <= training.warmup < 1, f"{key}.warmup", training.warmup, "in [0, 1), a share of the steps")
    decay = training.weight_decay
    _require(0 <= decay < math.inf, f"{key}.weight_decay", decay, ">= 0 and finite")
    _require(training.max_gradient_norm > 0, f"{key}.max_gradient_norm", training.max_gradient_norm, "> 0")
    _require(0 <= training.dropout < 1, f"{key}.dropout", training.dropout, "in [0, 1)")
    parts = training.gradient_accumulation
    _require(1 <= parts <= training.batch_size, f"{key}.gradient_accumulation", parts, "in [1, batch_size]")
    precision = training.mixed_precision
    _require(precision in PRECISIONS, f"{key}.mixed_precision", precision, f"one of {PRECISIONS}")
    _check_schedule(key, training)


def _check_schedule(key: str, training: Training) -> None:
    _check_choice(f"{key}.schedule", training.schedule, SCHEDULES)
    lowest, rewinds = training.lowest_rate, list(training.rewind_epochs)
    if training.schedule == "cyclic":
        _require(training.steps == 0, f"{key}.steps", training.steps, "0 with schedule 'cyclic': give epochs")
        inside = all(0 < a < b for a, b in itertools.pairwise((*rewinds, training.epochs)))
        _require(inside, f"{key}.rewind_epochs", rewinds, f"rising, in (0, {training.epochs:g})")
        _require(0 <= lowest <= training.learning_rate, f"{key}.lowest_rate", lowest, "in [0, learning_rate]")
    else:
        limit = "'cyclic' where there are rewind_epochs or a lowest_rate"
        _require(not rewinds and lowest == 0, f"{key}.schedule", training.schedule, limit)
    if training.schedule == "rewinding":
        limit = "'linear' or 'cyclic' here: rewinding follows the mask updates of 'prune.training'"
        _require(key == "prune.training", f"{key}.schedule", training.schedule, limit)


def _check_distillation(key: str, distillation: Distillation) -> None:
    temperature = distillation.temperature
    _require(0 < temperature < math.inf, f"{key}.temperature", temperature, "> 0 and finite")
    for name in ("task", "teacher", "hidden"):
        weight = getattr(distillation, name)
        _require(0 <= weight < math.inf, f"{key}.{name}", weight, ">= 0 and finite")
    total = distillation.task + distillation.teacher
    _require(total > 0, f"{key} task + teacher", total, "> 0: hidden states alone train no head")


def _check_prune(prune: Prune) -> None:
    _require(0 <= prune.sparsity < 1, "prune.sparsity", prune.sparsity, "in [0, 1)")
    _check_choice("prune.criterion", prune.criterion, CRITERIA)
    _check_choice("prune.scope", prune.scope, SCOPES)
    _check_pattern(prune)
    _require(0 <= prune.initial <= prune.sparsity, "prune.initial", prune.initial, f"in [0, {prune.sparsity}]")
    _check_timing(prune)
    layers = prune.keep_layers
    rising = all(a < b for a, b in itertools.pairwise((-1, *layers)))
    _require(rising, "prune.keep_layers", list(layers), "layer numbers from 0 on, rising, without repetition")
    _check_statistics(prune)


def _check_pattern(prune: Prune) -> None:
    kept = n_of_m(prune.pattern)
    if kept is None:
        _check_choice("prune.pattern", prune.pattern, PATTERNS)
        return
    n, m = kept
    # 4:8 has 70 ways to drop four of eight, 8:16 has 12,870.
    _require(n < m <= 8, "prune.pattern", prune.pattern, "N:M with N < M <= 8")
    right = math.isclose(prune.sparsity, 1 - n / m)
    limit = f"{1 - n / m:g}, the sparsity of pattern {prune.pattern}"
    _require(right, "prune.sparsity", prune.sparsity, limit)


def _check_timing(prune: Prune) -> None:
    share = (prune.start, prune.end)
    _require(0 <= prune.start < prune.end <= 1, "prune.start, prune.end", share, "0 <= start < end <= 1")
    _require(prune.update_every >= 1, "prune.update_every", prune.update_every, ">= 1 step")
    _check_reselection(prune)
    epochs, training = prune.at_epochs, prune.training
    if training.schedule == "rewinding":
        _require(not epochs, "prune.at_epochs", list(epochs), "absent with schedule 'rewinding'")
        _require(prune.start == 0, "prune.start", prune.start, "0 with schedule 'rewinding'")
        rest = prune.end + training.warmup
        _require(rest < 1, "prune.end + prune.training.warmup", rest, "< 1 with schedule 'rewinding'")
    if epochs:
        _require(training.steps == 0, "prune.training.steps", training.steps, "0 beside prune.at_epochs: give epochs")
        inside = all(a < b for a, b in itertools.pairwise(epochs)) and epochs[0] >= 0 and epochs[-1] < training.epochs
        _require(inside, "prune.at_epochs", list(epochs), f"rising, in [0, {training.epochs:g})")
        timing = (*share, prune.update_every)
        default = (Prune.start, Prune.end, Prune.update_every)
        _require(timing == default, "prune.start, end, update_every", timing, "absent beside at_epochs")


def _check_reselection(prune: Prune) -> None:
    until = prune.reselect_until
    _require(until == 0 or prune.end <= until <= 1, "prune.reselect_until", until, f"0 or in [{prune.end}, 1]")
    if until:
        why = f"0 for criterion {prune.criterion!r}: only by magnitude can a dropped weight's old value compete"
        _require(prune.criterion == "magnitude", "prune.reselect_until", until, why)
        _require(not prune.at_epochs, "prune.reselect_until", until, "0 beside at_epochs: it goes by update_every")


def _check_statistics(prune: Prune) -> None:
    fisher = prune.fisher
    if prune.criterion == "obert":
        kept = n_of_m(prune.pattern)
        size = kept[1] if kept else 1 if prune.pattern == "unstructured" else 4
        _require(fisher.gradients >= 1, "prune.fisher.gradients", fisher.gradients, ">= 1")
        _require(fisher.batch_size >= 1, "prune.fisher.batch_size", fisher.batch_size, ">= 1")
        whole = fisher.block >= 1 and fisher.block % size == 0
        _require(whole, "prune.fisher.block", fisher.block, f"a multiple of {size} for pattern {prune.pattern}")
        _require(0 < fisher.damping < math.inf, "prune.fisher.damping", fisher.damping, "> 0 and finite")
        _require(fisher.recomputations >= 1, "prune.fisher.recomputations", fisher.recomputations, ">= 1")
    else:
        _require(fisher == Fisher(), "prune.fisher", fisher, f"absent: criterion {prune.criterion!r} does not use it")
    if prune.criterion == "movement":
        first = prune.at_epochs[0] if prune.at_epochs else prune.start
        late = prune.initial == 0 or first > 0
        _require(late, "prune.initial", prune.initial, "0 where pruning begins at once: nothing has moved yet")
    if prune.criterion != "magnitude":
        precision = prune.training.mixed_precision
        why = f"'no' or 'bf16': criterion {prune.criterion!r} adds up gradients, which fp16 would scale"
        _require(precision != "fp16", "prune.training.mixed_precision", precision, why)


def _check_choice(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1, cutoff=0.0)[0]
        raise RecipeError(f"'{key}' is {value!r}; did you mean '{near}'? (known: {', '.join(known)})")


def _require(holds: bool, key: str, value: object, limit: str) -> None:
    if not holds:
        raise RecipeError(f"'{key}' is {value!r}; it must be {limit}")
