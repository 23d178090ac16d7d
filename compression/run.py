"""A recipe from start to artifact: teacher, prune, quantize, export, evaluate; each stage is kept and never redone."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from compression import prune
from compression.checkpoint import encoder_matrices, load_config, load_model, load_tokenizer
from compression.data import Example, find_source, read_examples
from compression.encode import Encoder, Window
from compression.evaluate import Predict, evaluate, torch_predictor
from compression.layers import check_layers, keep_layers
from compression.patterns import check_pattern
from compression.quantize import quantize_model
from compression.recipe import Distillation, Recipe, RecipeError, Training
from compression.teacher import Teacher, kept_teacher, live_teacher
from compression.train import Stage, append_metrics, read_metrics, seed_everything, train

# After each stage this many validation examples are judged, to see at a glance where the run stands; the full set is
# judged once, at the end.
QUICK_EXAMPLES = 500


@dataclass(frozen=True)
class Prepared:
    """A recipe with its data read, checked and cut into windows; `more` are further validation sets by split."""

    recipe: Recipe
    folder: Path
    tokenizer: Tokenizer
    train_windows: Sequence[Window]
    examples: Sequence[Example]
    windows: Sequence[Window]
    more: Mapping[str, tuple[Sequence[Example], Sequence[Window]]]


def prepare(recipe: Recipe, recipe_text: str, data: Path, folder: Path) -> Prepared:
    """Check everything that can be checked before hours of work, and open the run folder.

    Raises:
        RecipeError: the folder holds a run of another recipe. DataError, CheckpointError: see their modules.
    """
    config = load_config(recipe.checkpoint)
    if recipe.task.window > config.max_position_embeddings:
        raise RecipeError(
            f"'task.window' is {recipe.task.window}; the checkpoint has {config.max_position_embeddings} positions"
        )
    check_pattern(recipe.prune.pattern, config)
    check_layers(recipe.prune.keep_layers, config)

    def read(name: str, limit: int) -> list[Example]:
        examples = read_examples(find_source(data, name), recipe.task, recipe.data.table)
        return examples[:limit] if limit else examples

    training = read(recipe.data.train, recipe.data.train_limit)
    validation = read(recipe.data.validation, recipe.data.validation_limit)
    further = {more.split: read(more.file, recipe.data.validation_limit) for more in recipe.data.more_validation}
    tokenizer = load_tokenizer(recipe.checkpoint)
    encoder = Encoder(tokenizer, recipe.task, uses_types=bool(getattr(config, "type_vocab_size", 0)))
    _open_folder(folder, recipe_text)
    more = {split: (examples, encoder.windows(examples)) for split, examples in further.items()}
    windows = encoder.windows(training)
    return Prepared(recipe, folder, tokenizer, windows, validation, encoder.windows(validation), more)


def _open_folder(folder: Path, recipe_text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    recorded = folder / "recipe.toml"
    if recorded.is_file() and recorded.read_text(encoding="utf-8") != recipe_text:
        raise RecipeError(
            f"{folder} holds a run of another recipe ({recorded}); choose another --run-folder or remove it"
        )
    recorded.write_text(recipe_text, encoding="utf-8")


def fit_teacher(run: Prepared) -> Path:
    """Fine-tune the dense model on the task; return its checkpoint folder."""
    target = run.folder / "teacher"
    if not target.is_dir():
        seed_everything(run.recipe.seed)  # the head starts at random
        model = load_model(run.recipe.checkpoint, run.recipe.task, dropout=run.recipe.teacher.dropout)
        _train_stage(run, model, "teacher", run.recipe.teacher, seed=0)
        _finish(run, model, "teacher", {})
    return target


def fit_pruned(run: Prepared, teacher: Path) -> Path:
    """Prune a copy of the teacher gradually while it distils from it; return its checkpoint folder."""
    target = run.folder / "pruned"
    settings = run.recipe.prune
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
        _finish(run, model, "pruned", masks)
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
            quantize_model(model)
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


def load_masks(folder: Path) -> prune.Masks:
    """Read the masks that a pruned checkpoint was saved with."""
    return {name: mask.bool() for name, mask in load_file(folder / "masks.safetensors").items()}


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
    stage = Stage(
        name=name,
        task=run.recipe.task.name,
        training=training,
        seed=run.recipe.seed + seed,
        windows=run.train_windows,
        matrices=encoder_matrices(model),
        masks=masks or {},
        schedule=run.recipe.prune if schedule else None,
        distillation=distillation,
        teacher=_teacher(run, teacher, training) if teacher else None,
    )
    return train(model, stage, run.folder)


def _teacher(run: Prepared, checkpoint: Path, training: Training) -> Teacher:
    model = load_model(str(checkpoint), run.recipe.task)
    if training.epochs <= 1 and not (run.folder / "teacher_logits.safetensors").is_file():
        return live_teacher(model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu")))  # type: ignore[arg-type]
    return kept_teacher(model, run.train_windows, run.folder / "teacher_logits.safetensors")


def _finish(run: Prepared, model: PreTrainedModel, name: str, masks: prune.Masks) -> None:
    """Save a stage's checkpoint under its final name, whole or not at all, and take a quick look at its quality."""
    temporary = run.folder / (name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    run.tokenizer.save(str(temporary / "tokenizer.json"))
    if masks:
        save_file({key: mask.to(torch.uint8) for key, mask in masks.items()}, temporary / "masks.safetensors")
    few = [window for window in run.windows if window.example < QUICK_EXAMPLES]
    report = evaluate(torch_predictor(model), few, run.examples[:QUICK_EXAMPLES], run.recipe.task, name=f"{name} check")
    line = {"stage": name, "quick": report.scores, "sparsity": prune.overall_sparsity(encoder_matrices(model))}
    append_metrics(run.folder, line)
    temporary.rename(run.folder / name)
    (run.folder / "state.pt").unlink(missing_ok=True)


def full_quality(run: Prepared, checkpoint: Path, *, quantized: bool = False) -> dict[str, float]:
    """Judge a stage's torch checkpoint on the whole validation set; kept in metrics.jsonl and not computed twice."""
    for line in read_metrics(run.folder):
        if line["stage"] == checkpoint.name and "full" in line:
            return dict(line["full"])
    model = load_model(str(checkpoint), run.recipe.task)
    if quantized:
        quantize_model(model)
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
