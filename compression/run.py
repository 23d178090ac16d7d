"""A task recipe stage by stage: teacher, prune or transfer, quantize; each stage is kept and never redone."""

import hashlib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import PreTrainedModel

from compression import processes, prune
from compression.batches import count_steps
from compression.checkpoint import (
    CheckpointError,
    encoder_matrices,
    load_config,
    load_model,
    load_tokenizer,
    save_tokenizer,
)
from compression.data import Example, find_source, read_examples, read_training
from compression.encode import Encoder, Window
from compression.evaluate import Predict, evaluate, torch_predictor
from compression.files import remove, write_text, writing
from compression.layers import check_layers, keep_layers
from compression.loop import Stage, seed_everything
from compression.metrics import headline
from compression.objective import check_same_width
from compression.pattern import find_pattern, load_masks, save_masks
from compression.patterns import check_pattern
from compression.plots import draw_run
from compression.quantize import quantize_model
from compression.recipe import Distillation, Recipe, RecipeError, Training
from compression.teacher import Teacher, doubt_teacher, kept_teacher, live_teacher, load_teacher
from compression.train import append_metrics, read_metrics, train
from compression.unlabelled import read_unlabelled

# After each stage this many validation examples are judged, to see at a glance where the run stands; the full set is
# judged once, at the end.
QUICK_EXAMPLES = 500


@dataclass(frozen=True)
class Prepared:
    """A task recipe with its data read, checked and cut into windows; `more` are further validation sets by split.

    `unlabelled` windows join those of the training set where a teacher answers, see `windows_of`.
    `locked` holds the masks of a sparse checkpoint and `pattern` says where they come from; both are empty without
    `transfer`. `record` is that of the stages.
    """

    recipe: Recipe
    folder: Path
    tokenizer: Tokenizer
    train_windows: Sequence[Window]
    examples: Sequence[Example]
    windows: Sequence[Window]
    more: Mapping[str, tuple[Sequence[Example], Sequence[Window]]]
    locked: prune.Masks = field(default_factory=dict)
    pattern: str = ""
    record: bool = False
    unlabelled: Sequence[Window] = ()

    def windows_of(self, distillation: Distillation | None) -> Sequence[Window]:
        """Return what a stage with this distillation, or none, trains on."""
        return [*self.train_windows, *self.unlabelled] if distillation and self.unlabelled else self.train_windows


def prepare(recipe: Recipe, recipe_text: str, data: Path, folder: Path) -> Prepared:
    """Check everything that can be checked before hours of work, and open the run folder.

    Raises:
        RecipeError: the folder holds a run of another recipe. DataError, CheckpointError: see their modules.
    """
    uses_types = _check_checkpoints(recipe)
    tokenizer = load_tokenizer(recipe.checkpoint)
    if recipe.teacher.checkpoint:
        check_same_vocabulary(tokenizer, recipe.teacher.checkpoint)
    if not recipe.teacher.trains:
        load_teacher(recipe.teacher.checkpoint, recipe.task)

    def read(name: str, limit: int) -> list[Example]:
        examples = read_examples(find_source(data, name), recipe.task, recipe.data.table)
        return examples[:limit] if limit else examples

    training = read_training(data, recipe.task, recipe.data)
    texts = read_unlabelled(data, recipe.data, recipe.seed)
    validation = read(recipe.data.validation, recipe.data.validation_limit)
    further = {more.split: read(more.file, recipe.data.validation_limit) for more in recipe.data.more_validation}
    locked: prune.Masks = {}
    pattern = ""
    if recipe.transfer:
        locked, pattern = find_pattern(recipe.checkpoint, load_model(recipe.checkpoint, recipe.task))
    encoder = Encoder(tokenizer, recipe.task, uses_types)
    _check_golden(recipe, encoder)
    open_folder(folder, recipe_text)
    more = {split: (examples, encoder.windows(examples)) for split, examples in further.items()}
    windows, judged, unlabelled = encoder.windows(training), encoder.windows(validation), encoder.unlabelled(texts)
    check_same_data(folder, fingerprint([windows, unlabelled, judged, *(windows for _, windows in more.values())]))
    return Prepared(
        recipe, folder, tokenizer, windows, validation, judged, more, locked, pattern, unlabelled=unlabelled
    )


def fingerprint(parts: Sequence[Sequence[Window]]) -> str:
    """Return a SHA-256 of what is trained and judged on: tokens and targets of every window, part by part."""
    digest = hashlib.sha256()
    for windows in parts:
        digest.update(len(windows).to_bytes(8, "little"))
        for window in windows:
            digest.update(np.array([window.example, len(window.ids), len(window.targets)], np.int64).tobytes())
            for array in (window.ids, window.targets):
                digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def check_same_data(folder: Path, found: str) -> None:
    """Keep the fingerprint of a run's data in its folder. Raises RecipeError where it was begun with other data."""
    kept = folder / "data.sha256"
    if kept.is_file() and kept.read_text(encoding="utf-8").strip() != found:
        raise RecipeError(
            f"{folder} holds a run on other data: its files have changed since then; choose another "
            "--run-folder, or put the former files back"
        )
    processes.main_only(lambda: write_text(kept, found + "\n"))


def _check_golden(recipe: Recipe, encoder: Encoder) -> None:
    """Raise RecipeError for a golden example that the service refuses, or reads whole where we would cut."""
    window = f"with task.window = {recipe.task.window}"
    for number, golden in enumerate(recipe.golden):
        tokens = {
            name: len(encoder.tokenizer.encode(text, add_special_tokens=False).ids)
            for name, text in asdict(golden).items()
            if text
        }
        for name, count in tokens.items():
            most = encoder.most_question_tokens if name == "question" else count
            if not 1 <= count <= most:
                limit = f"at most {most}, {window}" if count else "at least one"
                raise RecipeError(f"'golden[{number}].{name}' has {count} tokens; it must have {limit}")
        if recipe.task.pairs and sum(tokens.values()) > recipe.task.window - 3:
            limit = f"at most {recipe.task.window - 3}, {window}"
            raise RecipeError(f"'golden[{number}]' is a pair of {sum(tokens.values())} tokens; it must have {limit}")


def _check_checkpoints(recipe: Recipe) -> bool:
    """Check that student and teacher can read the recipe's windows; return whether one of them uses token types."""
    uses_types = False
    widths = []
    for checkpoint in (recipe.checkpoint, recipe.teacher.checkpoint or recipe.checkpoint):
        config = load_config(checkpoint)
        widths.append(config.hidden_size)
        if recipe.task.window > config.max_position_embeddings:
            raise RecipeError(
                f"'task.window' is {recipe.task.window}; the checkpoint has {config.max_position_embeddings} positions"
            )
        uses_types = uses_types or bool(getattr(config, "type_vocab_size", 0))
    if recipe.transfer and (recipe.transfer.distillation.hidden or recipe.quantize.distillation.hidden):
        check_same_width(*widths)
    if recipe.prune:  # a copy of the teacher is pruned
        config = load_config(recipe.teacher.checkpoint or recipe.checkpoint)
        check_pattern(recipe.prune.pattern, config)
        check_layers(recipe.prune.keep_layers, config)
    return uses_types


def check_same_vocabulary(tokenizer: Tokenizer, teacher: str) -> None:
    """Student and teacher read the same token ids. Raises CheckpointError where their vocabularies differ."""
    if load_tokenizer(teacher).get_vocab() != tokenizer.get_vocab():
        raise CheckpointError(f"teacher {teacher!r} and student differ in their vocabularies; they must be the same")


def open_folder(folder: Path, recipe_text: str) -> None:
    """Make a run folder with its recipe, or enter it again. Raises RecipeError for a run of another recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    recorded = folder / "recipe.toml"
    if recorded.is_file() and _result(recorded.read_text(encoding="utf-8")) != _result(recipe_text):
        raise RecipeError(
            f"{folder} holds a run of another recipe ({recorded}); choose another --run-folder or remove it"
        )
    processes.main_only(lambda: write_text(recorded, recipe_text))


def _result(recipe_text: str) -> object:
    """Return of a recipe what its training follows from.

    How a batch is cut may change while a run is under way, and so may what only the artifact says: its name, its golden
    examples, whom it credits.
    """
    document = tomllib.loads(recipe_text)
    for key in ("name", "golden"):
        document.pop(key, None)
    for table in ("data", "text"):
        document.get(table, {}).pop("sources", None)

    def strip(value: object) -> object:
        if isinstance(value, dict):
            return {key: strip(part) for key, part in value.items() if key != "gradient_accumulation"}
        return [strip(part) for part in value] if isinstance(value, list) else value

    return strip(document)


def fit_teacher(run: Prepared) -> Path:
    """Fine-tune the dense model on the task, or take one that is; return its checkpoint folder."""
    target = run.folder / "teacher"
    settings = run.recipe.teacher
    if not target.is_dir():
        seed_everything(run.recipe.seed)  # the head starts at random
        source = settings.checkpoint or run.recipe.checkpoint
        if settings.trains:
            model = load_model(source, run.recipe.task, dropout=settings.dropout)
            _train_stage(run, model, "teacher", settings, seed=0)
        else:
            model = load_teacher(source, run.recipe.task)
        _finish(run, model, "teacher", {})
    if not settings.trains:
        examples, lines = run.examples[:QUICK_EXAMPLES], read_metrics(run.folder)
        processes.main_only(lambda: doubt_teacher(settings.checkpoint, run.recipe.task, examples, lines))
    return target


def fit_sparse(run: Prepared, teacher: Path) -> Path:
    """Prune, or transfer, as the recipe says; return the folder of the sparse checkpoint."""
    return fit_pruned(run, teacher) if run.recipe.prune else fit_transferred(run, teacher)


def fit_transferred(run: Prepared, teacher: Path) -> Path:
    """Train the recipe's sparse checkpoint on the task, its pattern locked; return its checkpoint folder."""
    target = sparse_folder(run)
    settings = run.recipe.transfer
    assert settings is not None
    if not target.is_dir():
        share = prune.mask_sparsity(run.locked)
        line = {"stage": target.name, "locked": share, "pattern": run.pattern}
        if processes.state().is_main_process and line not in read_metrics(run.folder):
            tqdm.write(f"transfer: {100 * share:.1f} % of the encoder's weights are locked, by {run.pattern}")
            append_metrics(run.folder, line)
        seed_everything(run.recipe.seed + 1)  # the head starts at random
        model = load_model(run.recipe.checkpoint, run.recipe.task, dropout=settings.training.dropout)
        _train_stage(
            run,
            model,
            "transfer",
            settings.training,
            seed=1,
            masks=run.locked,
            distillation=settings.distillation,
            teacher=teacher,
        )
        _finish(run, model, target.name, run.locked)
    return target


def sparse_folder(run: Prepared) -> Path:
    """Folder of the sparse checkpoint before quantization."""
    return run.folder / ("pruned" if run.recipe.prune else "transferred")


def fit_pruned(run: Prepared, teacher: Path) -> Path:
    """Prune a copy of the teacher gradually while it distils from it; return its checkpoint folder."""
    target = sparse_folder(run)
    settings = run.recipe.prune
    assert settings is not None
    if not target.is_dir():
        model = load_model(str(teacher), run.recipe.task, dropout=settings.training.dropout)
        if settings.keep_layers:
            keep_layers(model, settings.keep_layers)
        masks = _train_stage(
            run,
            model,
            "prune",
            settings.training,
            seed=1,
            schedule=True,
            distillation=settings.distillation,
            teacher=teacher,
        )
        _finish(run, model, target.name, masks)
    return target


def fit_quantized(run: Prepared, teacher: Path, pruned: Path) -> Path:
    """Train the pruned model in the engine's arithmetic, its pattern locked; return its checkpoint folder.

    Rewinds are rounds of their own, each with its checkpoint, so that a stop costs no finished round.
    """
    rounds = (run.recipe.quantize.training, *run.recipe.quantize.rewinds)
    names = [*(f"quantized-{number}" for number in range(1, len(rounds))), "quantized"]
    masks = load_masks(pruned)
    source = pruned
    for number, (name, training) in enumerate(zip(names, rounds, strict=True)):
        if not (run.folder / name).is_dir():
            model = load_model(str(source), run.recipe.task, dropout=training.dropout)
            quantize_model(model, embeddings=run.recipe.quantize.embeddings)
            _train_stage(
                run,
                model,
                f"rewind-{number}" if number else "quantize",
                training,
                seed=2 + number,
                masks=masks,
                distillation=run.recipe.quantize.distillation,
                teacher=teacher,
            )
            _finish(run, model, name, masks)
        source = run.folder / name
    return source


def _train_stage(
    run: Prepared,
    model: PreTrainedModel,
    name: str,
    training: Training,
    *,
    seed: int,
    masks: prune.Masks | None = None,
    schedule: bool = False,
    distillation: Distillation | None = None,
    teacher: Path | None = None,
) -> prune.Masks:
    live = distillation is not None and _is_live(run, training, distillation)
    stage = Stage(
        name=name,
        task=run.recipe.task.name,
        training=training,
        seed=run.recipe.seed + seed,
        windows=run.windows_of(distillation),
        matrices=encoder_matrices(model),
        masks=masks or {},
        schedule=run.recipe.prune if schedule else None,
        distillation=distillation,
        teacher=_teacher(run, teacher, distillation, live=live) if teacher and distillation else None,
        live_teacher=live,
        record=run.record,
        judge=lambda: _quick(run, model, name)[headline(run.recipe.task)],
    )
    return train(model, stage, run.folder)


def _teacher(run: Prepared, checkpoint: Path, distillation: Distillation, *, live: bool) -> Teacher:
    model = load_model(str(checkpoint), run.recipe.task, trains=False)
    model.to(processes.device())  # type: ignore[arg-type]
    if live:
        return live_teacher(model, hidden=distillation.hidden > 0)
    return kept_teacher(model, run.windows_of(distillation), _kept_logits(run))


def _is_live(run: Prepared, training: Training, distillation: Distillation) -> bool:
    """Whether the teacher answers as the student asks, and its answers are not kept.

    Kept, the states of all windows would take gigabytes. On a GPU the teacher costs less than fetching what is kept.
    """
    if distillation.hidden or processes.device().type == "cuda":
        return True
    return seen_once(training, len(run.windows_of(distillation))) and not _kept_logits(run).is_file()


def _kept_logits(run: Prepared) -> Path:
    return run.folder / "teacher_logits.safetensors"


def seen_once(training: Training, windows: int) -> bool:
    """Whether a training sees each window once at most: then keeping the teacher's logits costs more than it saves."""
    steps = count_steps(windows, training.batch_size, training.epochs, training.steps)
    return steps * training.batch_size <= windows + training.batch_size


def _finish(run: Prepared, model: PreTrainedModel, name: str, masks: prune.Masks) -> None:
    look = Look(lambda: _quick(run, model, name), headline(run.recipe.task))
    keep_stage(run.folder, name, model, run.tokenizer, masks, look)


def _quick(run: Prepared, model: PreTrainedModel, name: str) -> dict[str, float]:
    few = [window for window in run.windows if window.example < QUICK_EXAMPLES]
    examples = run.examples[:QUICK_EXAMPLES]
    return evaluate(torch_predictor(model), few, examples, run.recipe.task, name=f"{name} check").scores


@dataclass(frozen=True)
class Look:
    """A quick look at a model's quality: its scores, and the name of the one to show."""

    scores: Callable[[], dict[str, float]]
    metric: str


def keep_stage(
    folder: Path, name: str, model: PreTrainedModel, tokenizer: Tokenizer, masks: prune.Masks, look: Look
) -> None:
    """Save a stage's checkpoint as `folder`/`name`, whole or not at all, with a quick look at its quality and plots.

    The main process does it, the others wait. Raises TrainingError when the disk is full.
    """
    processes.main_only(lambda: _keep_alone(folder, name, model, tokenizer, masks, look))


def _keep_alone(
    folder: Path, name: str, model: PreTrainedModel, tokenizer: Tokenizer, masks: prune.Masks, look: Look
) -> None:
    temporary = folder / (name + ".tmp")
    remove(temporary)
    with writing(temporary):
        model.save_pretrained(temporary)
        save_tokenizer(tokenizer, model.config, temporary)
        save_masks(masks, temporary)
    scores = look.scores()
    sparsity = prune.overall_sparsity(encoder_matrices(model))
    append_metrics(folder, {"stage": name, "quick": scores, "metric": scores[look.metric], "sparsity": sparsity})
    draw_run(folder, prune.sparsity(encoder_matrices(model)))
    temporary.rename(folder / name)
    for state in ("state.pt", "state.pt.tmp"):
        (folder / state).unlink(missing_ok=True)


def full_quality(run: Prepared, checkpoint: Path, *, quantized: bool = False) -> dict[str, float]:
    """Judge a stage's torch checkpoint on the whole validation set; kept in metrics.jsonl and not computed twice."""
    for line in read_metrics(run.folder):
        if line["stage"] == checkpoint.name and "full" in line:
            return dict(line["full"])
    model = load_model(str(checkpoint), run.recipe.task, trains=False)
    model.to(processes.device())  # type: ignore[arg-type]
    if quantized:
        quantize_model(model, embeddings=run.recipe.quantize.embeddings)
    scores = judge(run, torch_predictor(model), checkpoint.name)
    append_metrics(run.folder, {"stage": checkpoint.name, "full": scores})
    return scores


def judge(run: Prepared, predict: Predict, name: str) -> dict[str, float]:
    """Score the whole validation set, and every further one under SPLIT/METRIC."""
    task = run.recipe.task
    scores = evaluate(predict, run.windows, run.examples, task, name=name).scores
    for split, (examples, windows) in run.more.items():
        found = evaluate(predict, windows, examples, task, name=f"{name} {split}").scores
        scores |= {f"{split}/{metric}": value for metric, value in found.items()}
    return scores
