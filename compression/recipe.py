"""What is to be done: one TOML file read into frozen dataclasses, every value checked before any work."""

import dataclasses
import difflib
import itertools
import math
import re
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

TaskName = Literal["question-answering", "text-classification", "token-classification"]
TASKS: tuple[TaskName, ...] = typing.get_args(TaskName)
CRITERIA = ("magnitude", "movement", "obert")
SCOPES = ("matrix", "global")
PATTERNS = ("unstructured", "1x4", "4x1", "2:4")  # and any other N:M
SCHEDULES = ("linear", "cyclic")


class RecipeError(ValueError):
    """A recipe that cannot be run; the message says which key, its value, and what is allowed."""


@dataclass(frozen=True)
class Task:
    """What the model answers. `labels` are class names, or entity groups for token classification.

    Text classification: `pairs` reads two texts, `multi_label` lets each label hold or not by itself, `metric` is the
    headline among the scores (empty: accuracy, or micro F1 for multi-label). Question answering: `no_answer` lets the
    model say that the context does not answer, where [CLS] beats the best span by more than `no_answer_threshold`.
    """

    name: str
    labels: tuple[str, ...] = ()
    window: int = 128
    stride: int = 32
    max_answer_tokens: int = 30
    pairs: bool = False
    multi_label: bool = False
    metric: str = ""
    no_answer: bool = False
    no_answer_threshold: float = 0.0


@dataclass(frozen=True)
class Source:
    """A data set to credit in the model card."""

    name: str
    licence: str
    source: str


@dataclass(frozen=True)
class Table:
    """How a table of texts is read; columns that are not named are called as in GLUE's files.

    `header = false`: the columns are called "1", "2", ... `separator` stands between the labels of a multi-label text.
    `bad_lines` may be skipped, and are counted: GLUE's QQP has some that are broken in two.
    """

    text: str = ""
    text_pair: str = ""
    label: str = ""
    header: bool = True
    separator: str = ","
    bad_lines: int = 0


@dataclass(frozen=True)
class Validation:
    """One more set to judge the finished model on, besides the one that gives the headline."""

    split: str
    file: str


@dataclass(frozen=True)
class Data:
    """Files, relative to the data folder given on the command line, or sets on the hub (`hub:...`); their credits."""

    dataset: str
    train: str
    validation: str
    split: str = "dev"
    more_validation: tuple[Validation, ...] = ()
    table: Table = field(default_factory=Table)
    train_limit: int = 0
    validation_limit: int = 0
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True)
class Training:
    """Hyperparameters of one fine-tuning run: AdamW, linear warm-up, then the learning rate as `schedule` says.

    `linear` decays to zero. `cyclic` decays to `lowest_rate` and begins again at every epoch of `rewind_epochs`.
    """

    epochs: float
    learning_rate: float
    batch_size: int = 32
    warmup: float = 0.1
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0
    dropout: float = 0.1
    freeze_embeddings: bool = False
    gradient_accumulation: int = 1
    mixed_precision: str = "no"
    schedule: str = "linear"
    rewind_epochs: tuple[float, ...] = ()
    lowest_rate: float = 0.0


@dataclass(frozen=True)
class Distillation:
    """Weights of the loss: task * cross-entropy + teacher * T^2 KL(teacher || student), see `objective`."""

    task: float = 0.5
    teacher: float = 0.5
    temperature: float = 2.0


@dataclass(frozen=True)
class Fisher:
    """Second-order statistics: m gradients of batches, blocks of B weights, damping; see `fisher` and `surgeon`."""

    gradients: int = 1024
    batch_size: int = 16
    block: int = 50
    damping: float = 1e-7
    recomputations: int = 1


@dataclass(frozen=True)
class Prune:
    """Gradual pruning: which weights go, in which pattern, when; after the last update the masks are frozen.

    The sparsity rises on a cubic curve from `initial` to `sparsity`, between two shares of the steps or at the epochs
    `at_epochs`. `keep_layers` names the encoder layers that the student keeps of its teacher; empty is all.
    """

    sparsity: float
    training: Training
    distillation: Distillation = field(default_factory=Distillation)
    criterion: str = "magnitude"
    scope: str = "matrix"
    pattern: str = "unstructured"
    initial: float = 0.0
    start: float = 0.0
    end: float = 0.7
    update_every: int = 20
    at_epochs: tuple[float, ...] = ()
    fisher: Fisher = field(default_factory=Fisher)
    keep_layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Quantize:
    """Quantization-aware training with the pattern locked; each rewind trains on with the learning rate restarted."""

    training: Training
    distillation: Distillation = field(default_factory=Distillation)
    rewinds: tuple[Training, ...] = ()


@dataclass(frozen=True)
class Golden:
    """An input that the finished model is asked at export; a server asks it again at load and compares."""

    text: str = ""
    text_pair: str = ""
    question: str = ""
    context: str = ""


@dataclass(frozen=True)
class Recipe:
    """One run: base checkpoint, task, data, and the stages teacher, prune, quantize."""

    name: str
    checkpoint: str
    task: Task
    data: Data
    teacher: Training
    prune: Prune
    quantize: Quantize
    seed: int = 42
    golden: tuple[Golden, ...] = ()


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        RecipeError: unreadable file, bad TOML, an unknown or missing key, a wrong type, a value out of range.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"recipe {path}: cannot be read: {error.strerror}") from error
    return parse_recipe(text, str(path))


def parse_recipe(text: str, where: str = "recipe") -> Recipe:
    """Parse the text of a recipe; `where` names it in errors. Raises RecipeError as `load_recipe` does."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{where}: not valid TOML: {error}") from error
    try:
        recipe: Recipe = _build(Recipe, table, "")
        _check_values(recipe)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None
    return recipe


def _build(cls: Any, table: dict[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(cls)
    for key in table:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1, cutoff=0.0)
            raise RecipeError(
                f"unknown key '{prefix}{key}'; did you mean '{prefix}{near[0]}'? (known: {', '.join(hints)})"
            )
    for known in dataclasses.fields(cls):
        optional = known.default is not dataclasses.MISSING or known.default_factory is not dataclasses.MISSING
        if known.name not in table and not optional:
            raise RecipeError(f"missing key '{prefix}{known.name}'")
    return cls(**{key: _convert(hints[key], value, prefix + key) for key, value in table.items()})


def _convert(kind: Any, value: Any, key: str) -> Any:
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise RecipeError(f"'{key}' must be a table, got {value!r}")
        return _build(kind, value, key + ".")
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise RecipeError(f"'{key}' must be a list, got {value!r}")
        return tuple(_convert(typing.get_args(kind)[0], item, f"{key}[{i}]") for i, item in enumerate(value))
    if kind is float and type(value) is int:
        return float(value)
    # bool is an int to Python, but `epochs = true` is a mistake.
    if isinstance(kind, types.UnionType) or type(value) is not kind:
        raise RecipeError(f"'{key}' must be {kind.__name__}, got {value!r}")
    return value


def _check_values(recipe: Recipe) -> None:
    check_task(recipe.task)
    for key, training in (
        ("teacher", recipe.teacher),
        ("prune.training", recipe.prune.training),
        ("quantize.training", recipe.quantize.training),
        *((f"quantize.rewinds[{i}]", rewind) for i, rewind in enumerate(recipe.quantize.rewinds)),
    ):
        _check_training(key, training)
    for key, distillation in (("prune", recipe.prune.distillation), ("quantize", recipe.quantize.distillation)):
        _require(distillation.temperature > 0, f"{key}.distillation.temperature", distillation.temperature, "> 0")
        _require(distillation.task >= 0, f"{key}.distillation.task", distillation.task, ">= 0")
        _require(distillation.teacher >= 0, f"{key}.distillation.teacher", distillation.teacher, ">= 0")
        total = distillation.task + distillation.teacher
        _require(total > 0, f"{key}.distillation task + teacher", total, "> 0, else there is no loss")
    _check_prune(recipe.prune)
    for number, golden in enumerate(recipe.golden):
        keys = {key for key, value in dataclasses.asdict(golden).items() if value}
        wanted = {"question", "context"} if recipe.task.name == "question-answering" else {"text"}
        wanted |= {"text_pair"} if recipe.task.pairs else set()
        _require(
            keys == wanted, f"golden[{number}]", sorted(keys), f"a table of {sorted(wanted)} for {recipe.task.name}"
        )
    _check_data(recipe.data, recipe.task)


def _check_data(data: Data, task: Task) -> None:
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


def n_of_m(pattern: str) -> tuple[int, int] | None:
    """Return (N, M) of a pattern that keeps N of M neighbours, e.g. "2:4"; None for any other text."""
    found = re.fullmatch(r"([1-9]\d?):([1-9]\d?)", pattern)
    return (int(found[1]), int(found[2])) if found else None


def _check_prune(prune: Prune) -> None:
    _require(0 <= prune.sparsity < 1, "prune.sparsity", prune.sparsity, "in [0, 1)")
    _check_choice("prune.criterion", prune.criterion, CRITERIA)
    _check_choice("prune.scope", prune.scope, SCOPES)
    _check_pattern(prune)
    _require(0 <= prune.initial <= prune.sparsity, "prune.initial", prune.initial, f"in [0, {prune.sparsity}]")
    _require(
        0 <= prune.start < prune.end <= 1, "prune.start, prune.end", (prune.start, prune.end), "0 <= start < end <= 1"
    )
    _require(prune.update_every >= 1, "prune.update_every", prune.update_every, ">= 1 step")
    epochs = prune.at_epochs
    rising = all(a < b for a, b in itertools.pairwise(epochs))
    inside = not epochs or (epochs[0] >= 0 and epochs[-1] < prune.training.epochs)
    _require(rising and inside, "prune.at_epochs", list(epochs), f"rising, in [0, {prune.training.epochs:g})")
    timing = (prune.start, prune.end, prune.update_every)
    default = (Prune.start, Prune.end, Prune.update_every)
    _require(not epochs or timing == default, "prune.start, end, update_every", timing, "absent beside at_epochs")
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
    _require(
        math.isclose(prune.sparsity, 1 - n / m),
        "prune.sparsity",
        prune.sparsity,
        f"{1 - n / m:g}, the sparsity of pattern {prune.pattern}",
    )


def _check_statistics(prune: Prune) -> None:
    fisher = prune.fisher
    if prune.criterion == "obert":
        kept = n_of_m(prune.pattern)
        size = kept[1] if kept else 1 if prune.pattern == "unstructured" else 4
        _require(fisher.gradients >= 1, "prune.fisher.gradients", fisher.gradients, ">= 1")
        _require(fisher.batch_size >= 1, "prune.fisher.batch_size", fisher.batch_size, ">= 1")
        whole = fisher.block >= 1 and fisher.block % size == 0
        _require(whole, "prune.fisher.block", fisher.block, f"a multiple of {size} for pattern {prune.pattern}")
        _require(fisher.damping > 0, "prune.fisher.damping", fisher.damping, "> 0")
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


def check_task(task: Task, *, labels: bool = True) -> None:
    """Check a task's values; its labels only where the recipe gives them. Raises RecipeError."""
    _check_choice("task.name", task.name, TASKS)
    if labels and task.name == "question-answering":
        _require(not task.labels, "task.labels", list(task.labels), "absent for question answering")
    elif labels:
        fewest = 2 if task.name == "text-classification" else 1
        _require(len(task.labels) >= fewest, "task.labels", list(task.labels), f"at least {fewest} names")
        _require(len(set(task.labels)) == len(task.labels), "task.labels", list(task.labels), "without repetition")
    _check_kind(task, labels=labels)
    _require(task.window >= 16, "task.window", task.window, ">= 16 tokens")
    _require(0 <= task.stride < task.window - 8, "task.stride", task.stride, f"in [0, {task.window - 8})")
    _require(task.max_answer_tokens >= 1, "task.max_answer_tokens", task.max_answer_tokens, ">= 1")


def _check_kind(task: Task, *, labels: bool) -> None:
    for key in ("pairs", "multi_label", "metric"):
        value, text = getattr(task, key), task.name == "text-classification"
        _require(text or not value, f"task.{key}", value, "absent: it is for text classification")
    answers = task.name == "question-answering"
    _require(answers or not task.no_answer, "task.no_answer", True, "absent: it is for question answering")
    needless = task.no_answer or not task.no_answer_threshold
    _require(needless, "task.no_answer_threshold", task.no_answer_threshold, "absent without task.no_answer")
    if task.metric:
        allowed = metrics_of(task)
        _require(task.metric in allowed or not labels, "task.metric", task.metric, f"one of {allowed} for these labels")


def metrics_of(task: Task) -> tuple[str, ...]:
    """Name the scores of a text classification; the first is the headline where the recipe names none."""
    if task.multi_label:
        return ("micro_f1", "macro_f1", "subset_accuracy")
    return ("accuracy", "f1", "matthews") if len(task.labels) == 2 else ("accuracy",)


def _check_training(key: str, training: Training) -> None:
    _require(training.epochs > 0, f"{key}.epochs", training.epochs, "> 0")
    _require(0 < training.learning_rate < 1, f"{key}.learning_rate", training.learning_rate, "in (0, 1)")
    _require(training.batch_size >= 1, f"{key}.batch_size", training.batch_size, ">= 1")
    _require(0 <= training.warmup < 1, f"{key}.warmup", training.warmup, "in [0, 1), a share of the steps")
    _require(training.weight_decay >= 0, f"{key}.weight_decay", training.weight_decay, ">= 0")
    _require(training.max_gradient_norm > 0, f"{key}.max_gradient_norm", training.max_gradient_norm, "> 0")
    _require(0 <= training.dropout < 1, f"{key}.dropout", training.dropout, "in [0, 1)")
    accumulation = training.gradient_accumulation
    _require(
        1 <= accumulation <= training.batch_size, f"{key}.gradient_accumulation", accumulation, "in [1, batch_size]"
    )
    _check_choice(f"{key}.schedule", training.schedule, SCHEDULES)
    inside = all(0 < a < b for a, b in itertools.pairwise((*training.rewind_epochs, training.epochs)))
    _require(inside, f"{key}.rewind_epochs", list(training.rewind_epochs), f"rising, in (0, {training.epochs:g})")
    lowest = training.lowest_rate
    _require(0 <= lowest <= training.learning_rate, f"{key}.lowest_rate", lowest, "in [0, learning_rate]")
    linear = training.schedule == "linear"
    unused = not linear or (not training.rewind_epochs and lowest == 0)
    _require(unused, f"{key}.schedule", training.schedule, "'cyclic' where there are rewind_epochs or a lowest_rate")
    allowed = ("no", "bf16", "fp16")
    _require(
        training.mixed_precision in allowed, f"{key}.mixed_precision", training.mixed_precision, f"one of {allowed}"
    )


def _require(holds: bool, key: str, value: object, limit: str) -> None:
    if not holds:
        raise RecipeError(f"'{key}' is {value!r}; it must be {limit}")
