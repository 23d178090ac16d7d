"""The command line `sparselane-compress`: check, run, export, evaluate."""

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="sparselane-compress",
    help="Make a dense BERT into a sparse, 8-bit artifact.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

# What the extra brings; the command itself is installed with the service.
_TRAINER = ("torch", "transformers", "accelerate", "sklearn", "seqeval", "matplotlib", "tqdm")

_Data = Annotated[Path, typer.Option("--data", help="Folder that the recipe's data files lie in.")]
_Threads = Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0 = what the machine's quota allows.")]


@app.command()
def check(recipe: Annotated[Path, typer.Argument(help="Recipe (TOML).")], data: _Data = Path()) -> None:
    """Check a recipe, its data and its checkpoint without training."""
    from compression.read_recipe import load_recipe
    from compression.recipe import LanguageRecipe

    with _clear_errors():
        from tempfile import TemporaryDirectory

        from compression import pretrain
        from compression.batches import count_steps
        from compression.prune import mask_sparsity
        from compression.run import prepare

        _quiet_loading()
        loaded = load_recipe(recipe)
        text = recipe.read_text(encoding="utf-8")
        with TemporaryDirectory() as scratch:
            if isinstance(loaded, LanguageRecipe):
                typer.echo(pretrain.describe(loaded, text, data, Path(scratch)))
                return
            run = prepare(loaded, text, data, Path(scratch))
    lengths = [len(window.ids) for window in run.train_windows]
    typer.echo(f"{loaded.name}: {loaded.task.name} from {loaded.checkpoint}")
    if run.pattern:
        typer.echo(f"locked     {100 * mask_sparsity(run.locked):>9.1f} % of the encoder's weights, by {run.pattern}")
    typer.echo(f"training   {len(lengths):>9,} windows, {sum(lengths):,} tokens")
    typer.echo(f"validation {len(run.windows):>9,} windows of {len(run.examples):,} examples")
    for split, (examples, windows) in run.more.items():
        typer.echo(f"{split:<10} {len(windows):>9,} windows of {len(examples):,} examples")
    for name, training in loaded.stages():
        steps = count_steps(len(lengths), training.batch_size, training.epochs, training.steps)
        epochs = training.epochs or steps * training.batch_size / len(lengths)
        typer.echo(f"{name:<10} {steps:>9,} steps of {training.batch_size} windows ({epochs:.3g} epochs)")


@app.command(name="run")
def run_recipe(
    recipe: Annotated[Path, typer.Argument(help="Recipe (TOML).")],
    data: _Data = Path(),
    run_folder: Annotated[
        Path | None, typer.Option("--run-folder", help="Default: runs/NAME. A stopped run goes on.")
    ] = None,
    threads: _Threads = 0,
) -> None:
    """Train what a recipe says: to an artifact, or to a sparse language model; call again after a stop to go on."""
    with _clear_errors():
        import torch

        import engine
        from compression import pretrain
        from compression import run as stages
        from compression.publish import publish
        from compression.read_recipe import load_recipe
        from compression.recipe import LanguageRecipe

        _quiet_loading()
        threads = threads or engine.threads_from_quota()
        torch.set_num_threads(threads)
        loaded = load_recipe(recipe)
        folder = run_folder or Path("runs") / loaded.name
        text = recipe.read_text(encoding="utf-8")
        if isinstance(loaded, LanguageRecipe):
            typer.echo(pretrain.run_recipe(loaded, text, data, folder))
            return
        prepared = stages.prepare(loaded, text, data, folder)
        teacher = stages.fit_teacher(prepared)
        pruned = stages.fit_sparse(prepared, teacher)
        stages.fit_quantized(prepared, teacher, pruned)
        artifact = publish(prepared, threads)
        quality = engine.read_manifest(artifact).raw["quality"]
    typer.echo(
        f"{artifact}: {quality['metric']} on {quality['dataset']} {quality['split']}: dense {quality['dense']}, "
        f"sparse {quality['sparse']}, artifact {quality['quantized']}"
    )


@app.command()
def export(
    checkpoint: Annotated[
        str, typer.Argument(help="Local folder, hub name or package:NAME/PATH of a fine-tuned model.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write the artifact to.")],
    task: Annotated[
        str, typer.Option("--task", help="question-answering, text-classification or token-classification.")
    ],
    pairs: Annotated[bool, typer.Option("--pairs", help="The classifier reads pairs of texts.")] = False,
    no_answer: Annotated[bool, typer.Option("--no-answer", help="The model may find no answer (SQuAD v2.0).")] = False,
    name: Annotated[
        str, typer.Option("--name", help="The model's name in the service; default: the folder's name.")
    ] = "",
    window: Annotated[int, typer.Option("--window", help="Tokens per window.")] = 384,
    stride: Annotated[int, typer.Option("--stride", help="Tokens that neighbouring windows share.")] = 128,
) -> None:
    """Export a fine-tuned checkpoint as it is: exact zeros become the pattern, the rest is rounded to int8."""
    with _clear_errors():
        from compression.checkpoint import load_finetuned, load_tokenizer
        from compression.export import Origin, export_model
        from compression.recipe import Task
        from compression.recipe_rules import check_task

        model, outputs = load_finetuned(checkpoint, task)
        window = min(window, model.config.max_position_embeddings)
        settings = Task(
            name=task,
            window=window,
            stride=min(stride, window // 3),
            pairs=pairs,
            multi_label=task == "text-classification" and model.config.problem_type == "multi_label_classification",
            no_answer=no_answer,
        )
        check_task(settings, labels=False)
        origin = Origin(name or out.name, provenance={"base_checkpoint": checkpoint})
        export_model(model, load_tokenizer(checkpoint).to_str(), settings, outputs, origin, out)
        import engine

        manifest = engine.read_manifest(out)
    size = manifest.raw["size"]
    typer.echo(
        f"{out}: {100 * manifest.raw['sparsity']['overall']:.1f} % zeros, {size['total_bytes']:,} bytes, "
        f"encoder {size['ratio_encoder']:.1f} times smaller than dense float32"
    )


@app.command()
def evaluate(
    artifact: Annotated[Path, typer.Argument(help="Folder of an artifact.")],
    examples: Annotated[str, typer.Argument(help="SQuAD JSON, table of texts or CoNLL file, or hub:NAME:SPLIT.")],
    threads: _Threads = 0,
    text: Annotated[str, typer.Option("--text", help="Column of the text, where it is not called as in GLUE.")] = "",
    text_pair: Annotated[str, typer.Option("--text-pair", help="Column of the second text.")] = "",
    label: Annotated[str, typer.Option("--label", help="Column of the label.")] = "",
) -> None:
    """Judge an artifact through the engine on a data file."""
    with _clear_errors():
        from tokenizers import Tokenizer

        import engine
        from compression.data import find_source, read_examples
        from compression.encode import Encoder, prepare_tokenizer
        from compression.evaluate import evaluate as judge
        from compression.export import engine_predictor, task_of
        from compression.recipe import Table

        model = engine.load(artifact, threads=threads or None)
        task = task_of(model.manifest)
        table = Table(text=text, text_pair=text_pair, label=label)
        read = read_examples(find_source(Path(), examples), task, table)
        architecture = model.manifest.architecture
        tokenizer = prepare_tokenizer(Tokenizer.from_file(str(artifact / "tokenizer.json")), architecture.vocabulary)
        windows = Encoder(tokenizer, task, uses_types=architecture.types > 0).windows(read)
        scores = judge(engine_predictor(model), windows, read, task, name=artifact.name).scores
    typer.echo(
        f"{artifact}: {len(read):,} examples: " + ", ".join(f"{key} {value:.4f}" for key, value in scores.items())
    )


def _quiet_loading() -> None:
    from transformers.utils import logging

    # Our own bars show the training; those for loading and saving weights would bury them.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


class _clear_errors:  # noqa: N801, reads as a statement
    """Print the errors a user can mend as one line and exit with 2; let all others show their trace."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, ModuleNotFoundError) and error.name in _TRAINER:
            typer.echo(
                f"error: {error.name} is missing; install the trainer: pip install 'sparselane[compression]'", err=True
            )
            sys.exit(2)
        if error is None:
            return
        import engine
        from compression.checkpoint import CheckpointError
        from compression.data import DataError
        from compression.recipe import RecipeError
        from compression.train import TrainingError

        if isinstance(error, (RecipeError, DataError, CheckpointError, TrainingError, engine.ArtifactError)):
            typer.echo(f"error: {error}", err=True)
            sys.exit(2)
