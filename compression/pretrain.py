"""A language recipe stage by stage: prepare the teacher on plain text, prune a copy while it distils from it.

The result, `pruned` in the run folder, is an ordinary transformers checkpoint with its masks beside it.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedModel

from compression import processes, prune
from compression.batches import FreshPlan, count_steps
from compression.card import language_card
from compression.checkpoint import load_config, load_tokenizer
from compression.examples import DataError
from compression.files import check_room, missing_bytes, write_text
from compression.language import LanguageLoss, judge, language_matrices, load_language_model
from compression.layers import check_layers, keep_layers
from compression.loop import Stage, seed_everything
from compression.masking import FEWEST_TOKENS, MaskedWindows, cut_segments
from compression.objective import check_same_width
from compression.pattern import load_masks
from compression.patterns import check_pattern
from compression.plan import FLOAT, mask_bytes, state_bytes
from compression.recipe import Distillation, LanguageRecipe
from compression.run import Look, check_same_data, check_same_vocabulary, keep_stage, open_folder
from compression.text import drop_unfinished, fingerprint_of_files, load_corpus, split_documents
from compression.train import append_metrics, read_metrics, train

# While a stage runs so many windows are judged, to see where it stands; all of them at its end.
QUICK_WINDOWS = 500


@dataclass(frozen=True)
class PreparedText:
    """A language recipe with its text tokenized, split and cut into windows."""

    recipe: LanguageRecipe
    folder: Path
    tokenizer: Tokenizer
    train_windows: MaskedWindows
    windows: MaskedWindows


def prepare(recipe: LanguageRecipe, recipe_text: str, data: Path, folder: Path) -> PreparedText:
    """Check everything that can be checked before hours of work, open the run folder and tokenize into it.

    Raises:
        RecipeError: the folder holds a run of another recipe. DataError, CheckpointError: see their modules.
    """
    student = load_config(recipe.checkpoint)
    check_pattern(recipe.prune.pattern, student)
    check_layers(recipe.prune.keep_layers, student)
    teacher = recipe.teacher.checkpoint if recipe.teacher else ""
    if teacher and recipe.prune.distillation.hidden:
        check_same_width(student.hidden_size, load_config(teacher).hidden_size)
    trained = bool(recipe.teacher and recipe.teacher.trains)
    load_language_model(recipe.checkpoint, recipe.task, new_heads=trained and not teacher)
    tokenizer = load_tokenizer(recipe.checkpoint)
    if teacher:
        load_language_model(teacher, recipe.task, new_heads=trained)
        check_same_vocabulary(tokenizer, teacher)
    open_folder(folder, recipe_text)
    text = recipe.text
    files = [data / file for file in text.files]
    if all(file.is_file() for file in files):  # else its tokens may be kept, and nobody needs it again
        check_same_data(folder, fingerprint_of_files(files))
    processes.main_only(lambda: drop_unfinished(folder / "text"))
    processes.main_only(lambda: load_corpus(files, tokenizer, folder / "text", text.documents))
    corpus = load_corpus(files, tokenizer, folder / "text", text.documents)
    windows = []
    for number, documents in enumerate(split_documents(corpus.documents, text.validation, recipe.seed)):
        seed = recipe.seed + number
        limit = text.validation_windows if number else 0
        segments = cut_segments(corpus, documents, recipe.task, text.short, tokenizer, seed, limit)
        if not len(segments):
            part = "text.validation" if number else "training"
            raise DataError(
                f"{', '.join(map(str, files))}: the {len(documents)} document(s) of {part} hold no window of at least "
                f"{FEWEST_TOKENS} tokens; give more text, or another share for text.validation ({text.validation:g})"
            )
        windows.append(MaskedWindows(corpus, segments, tokenizer, recipe.task.masked, seed))
    return PreparedText(recipe, folder, tokenizer, *windows)


def run_recipe(recipe: LanguageRecipe, recipe_text: str, data: Path, folder: Path) -> str:
    """Run every stage that is not done yet; return a line on the result, empty in all processes but the main one.

    Raises TrainingError as `train` does, and where the disk cannot hold the run.
    """
    run = prepare(recipe, recipe_text, data, folder)
    check_room(folder, disk_needed(run))
    teacher = fit_teacher(run)
    pruned = fit_pruned(run, teacher)
    return processes.main_only(lambda: _document(run, recipe_text, teacher, pruned)) or ""


def disk_needed(run: PreparedText) -> int:
    """Return about how many bytes the run folder still has to grow by, its text being there.

    A checkpoint a stage, the sparse one with its masks; the state of the running one twice: the new one is written
    beside the old one.
    """
    recipe = run.recipe
    model = load_language_model(recipe.checkpoint, recipe.task, new_heads=True)
    matrices = language_matrices(model, recipe.task)
    checkpoints = len(recipe.stages()) * FLOAT * model.num_parameters() + mask_bytes(matrices)
    return missing_bytes(run.folder, checkpoints + 2 * state_bytes(model, matrices, recipe.prune))


def _document(run: PreparedText, recipe_text: str, teacher: str, pruned: Path) -> str:
    """Write the model card; return a line on the result."""
    recipe = run.recipe
    dense, sparse = scores_of(run, teacher, "teacher"), scores_of(run, str(pruned), "pruned")
    masks = load_masks(pruned)
    card = language_card(recipe, recipe_text, prune.mask_sparsity(masks), dense, sparse)
    write_text(pruned / "README.md", card)
    return (
        f"{pruned}: perplexity on {len(run.windows):,} held-out windows: dense {dense['perplexity']:.2f}, "
        f"sparse {sparse['perplexity']:.2f}; accuracy {dense['accuracy']:.4f}, {sparse['accuracy']:.4f}"
    )


def fit_teacher(run: PreparedText) -> str:
    """Train the dense language model on the text where the recipe asks for it; return the teacher's checkpoint."""
    settings = run.recipe.teacher
    source = settings.checkpoint if settings and settings.checkpoint else run.recipe.checkpoint
    target = run.folder / "teacher"
    if settings is None or not settings.trains:
        processes.main_only(lambda: scores_of(run, source, "teacher"))
        return source
    if not target.is_dir():
        seed_everything(run.recipe.seed)  # a head that the checkpoint lacks starts at random
        model = load_language_model(source, run.recipe.task, dropout=settings.dropout, new_heads=True)
        train(model, make_stage(run, model, "teacher"), run.folder)
        _finish(run, model, "teacher", {})
    return str(target)


def fit_pruned(run: PreparedText, teacher: str) -> Path:
    """Prune the student gradually while it distils from the teacher; return its checkpoint folder.

    The student starts as a copy of the teacher, unless the recipe names a checkpoint for each.
    """
    recipe, target = run.recipe, run.folder / "pruned"
    training = recipe.prune.training
    if not target.is_dir():
        source = recipe.checkpoint if recipe.teacher and recipe.teacher.checkpoint else teacher
        model = load_language_model(source, recipe.task, dropout=training.dropout)
        if recipe.prune.keep_layers:
            keep_layers(model, recipe.prune.keep_layers)
        masks = train(model, make_stage(run, model, "prune", load_language_model(teacher, recipe.task)), run.folder)
        _finish(run, model, "pruned", masks)
    return target


def scores_of(run: PreparedText, checkpoint: str, stage: str) -> dict[str, float]:
    """Judge a checkpoint on the held-out windows; kept in metrics.jsonl under `stage` and not computed twice."""
    for line in read_metrics(run.folder):
        if line["stage"] == stage and "quick" in line:
            return dict(line["quick"])
    model = load_language_model(checkpoint, run.recipe.task)
    model.to(processes.device())  # type: ignore[arg-type]
    scores = judge(model, run.windows, run.recipe.task, name=stage)
    append_metrics(run.folder, {"stage": stage, "quick": scores})
    return scores


def make_stage(run: PreparedText, model: PreTrainedModel, name: str, teacher: PreTrainedModel | None = None) -> Stage:
    """Return what the training loop needs for stage "teacher", or for "prune" with the model to distil from."""
    number, training = (0, run.recipe.teacher) if teacher is None else (1, run.recipe.prune.training)
    assert training is not None
    seed = run.recipe.seed + number
    windows = replace(run.train_windows, seed=seed)  # no stage sees the masks of another
    distillation: Distillation | None = None
    if teacher is not None:
        distillation = run.recipe.prune.distillation
        teacher.train(False).requires_grad_(False)
        teacher.to(processes.device())  # type: ignore[arg-type]
    few = replace(run.windows, segments=run.windows.segments[:QUICK_WINDOWS])
    steps = count_steps(len(windows), training.batch_size, training.epochs, training.steps)
    return Stage(
        name=name,
        task=run.recipe.task.name,
        training=training,
        seed=seed,
        windows=windows,
        matrices=language_matrices(model, run.recipe.task),
        masks={},
        schedule=run.recipe.prune if teacher is not None else None,
        plan=FreshPlan(windows.lengths, training.batch_size, steps, seed),
        language_loss=LanguageLoss(model, run.recipe.task.next_sentence, distillation, teacher),
        judge=lambda: judge(model, few, run.recipe.task, name=f"{name} check")["accuracy"],
    )


def _finish(run: PreparedText, model: PreTrainedModel, name: str, masks: prune.Masks) -> None:
    def look() -> dict[str, float]:
        return judge(model, run.windows, run.recipe.task, name=f"{name} check")

    keep_stage(run.folder, name, model, run.tokenizer, masks, Look(look, "accuracy"))
