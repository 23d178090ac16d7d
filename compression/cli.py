"""The command line `sparselane-compress`: check, run, export, grow, evaluate, calibrate."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import engine
    from compression.convert import Conversion
    from compression.encode import Window
    from compression.examples import Example
    from compression.recipe import Table, Task

app = typer.Typer(
    name="sparselane-compress",
    help="Make a dense BERT into a sparse, 8-bit artifact.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

# What the extra brings; the command itself is installed with the service.
_TRAINER = ("torch", "transformers", "accelerate", "sklearn", "seqeval", "matplotlib", "psutil", "scipy", "tqdm")

_Data = Annotated[Path, typer.Option("--data", help="Folder that the recipe's data files lie in.")]
_Attention = Annotated[str, typer.Option("--attention", help="Its arithmetic: int8, or float32 (slower).")]
_Embeddings = Annotated[
    str, typer.Option("--embeddings", help="How words are stored: int8, or product (a quarter of it, a minute longer).")
]
_Threads = Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0 = what the machine's quota allows.")]


_Recipe = Annotated[Path, typer.Argument(help="Recipe (TOML).")]
_RunFolder = Annotated[
    Path | None, typer.Option("--run-folder", help="Default: runs/NAME. A stopped run goes on where it was.")
]


# How a table of texts is read, as [data.table] in a recipe.
_Text = Annotated[str, typer.Option("--text", help="Column of the text, where it is not called as in GLUE.")]
_TextPair = Annotated[str, typer.Option("--text-pair", help="Column of the second text.")]
_Label = Annotated[str, typer.Option("--label", help="Column of the label.")]
_Header = Annotated[bool, typer.Option(help="Whether the first line names the columns; else they are 1, 2, ...")]
_Separator = Annotated[str, typer.Option("--separator", help="What stands between the labels of a multi-label text.")]
_BadLines = Annotated[int, typer.Option("--bad-lines", min=0, help="Skip at most so many lines that cannot be read.")]


@app.command()
def check(recipe: _Recipe, data: _Data = Path(), run_folder: _RunFolder = None, threads: _Threads = 0) -> None:
    """Check a recipe, its data and its checkpoint; say what would be trained, how long, in how much memory and disk."""
    _dry_run(recipe, data, run_folder, threads)


def _dry_run(recipe: Path, data: Path, run_folder: Path | None, threads: int) -> None:
    with _clear_errors():
        from dataclasses import replace
        from tempfile import TemporaryDirectory

        from compression import plan_language
        from compression.plan import describe
        from compression.read_recipe import load_recipe
        from compression.recipe import LanguageRecipe
        from compression.run import prepare

        _quiet(threads)
        loaded = load_recipe(recipe)
        text = recipe.read_text(encoding="utf-8")
        folder = run_folder or Path("runs") / loaded.name
        with TemporaryDirectory() as scratch:
            if isinstance(loaded, LanguageRecipe):
                lines = plan_language.describe(loaded, text, data, Path(scratch), folder)
            else:
                lines = describe(replace(prepare(loaded, text, data, Path(scratch)), folder=folder))
        for line in lines:
            typer.echo(line)


def _quiet(threads: int) -> int:
    """Set torch's threads, and keep transformers' own bars from burying ours; return the threads of this process."""
    import os

    import torch
    from transformers.utils import logging

    import engine

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # Processes that a launcher started on this machine share its cores.
    threads = _allowed(threads) or max(1, engine.threads_from_quota() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(threads)
    return threads


def _allowed(threads: int) -> int:
    """Return `threads`. Raises TrainingError for more than there are CPUs: the engine, who judges, refuses that."""
    import engine
    from compression.failures import TrainingError

    if threads > (most := engine.threads_from_quota()):
        raise TrainingError(f"--threads is {threads}; this machine gives {most} CPU(s): ask for that or less, or for 0")
    return threads


@app.command(name="run")
def run_recipe(
    recipe: _Recipe,
    data: _Data = Path(),
    run_folder: _RunFolder = None,
    threads: _Threads = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, as `check` does.")] = False,
    record_steps: Annotated[
        bool, typer.Option("--record-steps", help="On a GPU: launch a step of a task as one CUDA graph; faster.")
    ] = False,
) -> None:
    """Train what a recipe says: to an artifact, or to a sparse language model; call again after a stop to go on."""
    if dry_run:
        _dry_run(recipe, data, run_folder, threads)
        return
    with _clear_errors():
        from compression import processes
        from compression.line import run_line

        threads = _quiet(threads)
        if processes.launched_alone():
            typer.echo(
                "warning: accelerate launch --cpu starts one process only; for several on CPUs leave --cpu out: "
                "accelerate launch --multi_gpu --num_processes N",
                err=True,
            )
        if result := run_line(recipe, data, run_folder, threads, record=record_steps):
            typer.echo(result)


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
    labels: Annotated[
        str, typer.Option("--labels", help="Names of its outputs, in their order: a,b,c; default: the checkpoint's.")
    ] = "",
    window: Annotated[int, typer.Option("--window", help="Tokens per window.")] = 384,
    stride: Annotated[int, typer.Option("--stride", help="Tokens that neighbouring windows share.")] = 128,
    attention: _Attention = "int8",
    embeddings: _Embeddings = "int8",
    data: Annotated[
        str, typer.Option("--data", help="Examples to judge both on, as `evaluate` takes them; default: none.")
    ] = "",
    text: _Text = "",
    text_pair: _TextPair = "",
    label: _Label = "",
    header: _Header = True,
    separator: _Separator = ",",
    bad_lines: _BadLines = 0,
    require_sparsity: Annotated[
        float, typer.Option("--require-sparsity", min=0, max=1, help="Refuse a checkpoint with a lower share of zeros.")
    ] = 0.0,
    threads: _Threads = 0,
) -> None:
    """Export a fine-tuned checkpoint as it is: zeros become the pattern, the rest is rounded to int8; then verify."""
    with _clear_errors():
        import engine
        from compression.checkpoint import load_finetuned
        from compression.convert import Checks, Source, convert, name_outputs, with_window
        from compression.recipe import Table, Task
        from compression.recipe_rules import check_task

        threads = _quiet(threads)
        model, outputs = load_finetuned(checkpoint, task)
        asked = Task(
            name=task,
            window=window,
            stride=stride,
            pairs=pairs,
            multi_label=task == "text-classification" and model.config.problem_type == "multi_label_classification",
            no_answer=no_answer,
        )
        settings = with_window(asked, model.config.max_position_embeddings)
        check_task(settings, labels=False)
        source = Source(checkpoint, model, settings, name_outputs(outputs, labels, task))
        table = Table(text, text_pair, label, header, separator, bad_lines)
        checks = Checks(data, table, require_sparsity, threads)
        result = convert(source, out, name or out.name, attention=attention, embeddings=embeddings, checks=checks)
        manifest = engine.read_manifest(out)
    _show_conversion(checkpoint, result)
    size = manifest.raw["size"]
    typer.echo(
        f"{out}: {100 * manifest.raw['sparsity']['overall']:.1f} % zeros, {size['total_bytes']:,} bytes, "
        f"encoder {size['ratio_encoder']:.1f} times smaller than dense float32"
    )


def _show_conversion(checkpoint: str, result: "Conversion") -> None:
    """Print what was found in a checkpoint and how the artifact compares."""
    from rich.console import Console
    from rich.table import Table

    from compression.detect import overall_pattern, overall_sparsity, summary

    overall = f"{100 * overall_sparsity(result.found):.2f} % zeros, {overall_pattern(result.found)}"
    table = Table("matrices", "count", "zeros, lowest", "highest", "pattern", title=f"{checkpoint}: {overall}")
    for kind, count, lowest, highest, patterns in summary(result.found):
        table.add_row(kind, str(count), f"{100 * lowest:.2f} %", f"{100 * highest:.2f} %", patterns)
    Console().print(table)
    checked = result.verification
    for name, other in (("torch in int8", checked.int8), ("the checkpoint in float32", checked.float32)):
        typer.echo(
            f"beside {name}, {checked.inputs} inputs: {100 * other.agreement:.2f} % equal decisions, largest "
            f"difference {other.largest:.3g}, relative root mean square {other.relative:.3g}"
        )
    if result.quality:
        quality = result.quality
        before = quality.get("dense", quality.get("sparse"))
        typer.echo(
            f"{quality['metric']} on {quality['examples']:,} examples of {quality['dataset']}: "
            f"checkpoint {before}, artifact {quality['quantized']}"
        )


@app.command()
def grow(
    checkpoint: Annotated[str, typer.Argument(help="Local folder, hub name or package:NAME/PATH of a BERT.")],
    out: Annotated[Path, typer.Argument(help="Folder to write the large checkpoint to.")],
    to: Annotated[str, typer.Option("--to", help="distilbert, bert-base or bert-large.")],
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the draw who reads which copy.")] = 42,
    threads: _Threads = 0,
) -> None:
    """Make a small BERT, fine-tuned or not, into a large one that answers the same, to train on from there."""
    with _clear_errors():
        from compression.grow_checkpoint import grow_checkpoint

        _quiet(threads)
        difference, reasons = grow_checkpoint(checkpoint, to, out, seed=seed)
    typer.echo(f"{out}: outputs differ from {checkpoint}'s by {difference:.2g} of their size on random inputs")
    for reason in reasons or ["that is float rounding: the two compute the same"]:
        typer.echo(f"  {reason}")


@app.command()
def evaluate(
    artifact: Annotated[Path, typer.Argument(help="Folder of an artifact.")],
    examples: Annotated[str, typer.Argument(help="SQuAD JSON, table of texts or CoNLL file, or hub:NAME:SPLIT.")],
    threads: _Threads = 0,
    text: _Text = "",
    text_pair: _TextPair = "",
    label: _Label = "",
    header: _Header = True,
    separator: _Separator = ",",
    bad_lines: _BadLines = 0,
) -> None:
    """Judge an artifact through the engine on a data file."""
    with _clear_errors():
        import engine
        from compression.evaluate import evaluate as judge
        from compression.export import engine_predictor
        from compression.recipe import Table

        model = engine.load(artifact, threads=_allowed(threads) or None)
        table = Table(text, text_pair, label, header, separator, bad_lines)
        task, read, windows = _examples(model, artifact, examples, table)
        scores = judge(engine_predictor(model), windows, read, task, name=artifact.name).scores
    typer.echo(
        f"{artifact}: {len(read):,} examples: " + ", ".join(f"{key} {value:.4f}" for key, value in scores.items())
    )


@app.command()
def calibrate(
    artifact: Annotated[Path, typer.Argument(help="Folder of an artifact; it is replaced.")],
    examples: Annotated[str, typer.Argument(help="Examples that were not trained on, as `evaluate` takes them.")],
    threads: _Threads = 0,
    text: _Text = "",
    text_pair: _TextPair = "",
    label: _Label = "",
    header: _Header = True,
    separator: _Separator = ",",
    bad_lines: _BadLines = 0,
) -> None:
    """Make an artifact's scores say how often it is right: one temperature for all logits, no answer changes."""
    with _clear_errors():
        import engine
        from compression.card import model_card
        from compression.checkpoint import CheckpointError
        from compression.export import engine_predictor
        from compression.pack import divide_logits
        from compression.recipe import Table
        from compression.temperature import WINDOWS, fit_temperature
        from compression.verify import predict_all

        model = engine.load(artifact, threads=_allowed(threads) or None)
        table = Table(text, text_pair, label, header, separator, bad_lines)
        task, _, windows = _examples(model, artifact, examples, table)
        if task.name == "question-answering":
            raise CheckpointError(
                f"{artifact} answers questions; only classifications of texts and tokens are calibrated"
            )
        few = windows[:WINDOWS]
        temperature = fit_temperature(few, predict_all(engine_predictor(model), few), task)
        before = model.manifest.raw["provenance"].get("temperature", 1.0)
        divide_logits(artifact, temperature, {"temperature": round(before * temperature, 4)}, model_card)
    typer.echo(f"{artifact}: logits are divided by {temperature:g}, as {len(few):,} windows of {examples} tell")


def _examples(
    model: "engine.Model", artifact: Path, source: str, table: "Table"
) -> "tuple[Task, list[Example], list[Window]]":
    """Read examples for an artifact; return them with its task, and cut into windows."""
    from tokenizers import Tokenizer

    from compression.data import find_source, read_examples
    from compression.encode import Encoder, prepare_tokenizer
    from compression.export import task_of

    task = task_of(model.manifest)
    read = read_examples(find_source(Path(), source), task, table)
    architecture = model.manifest.architecture
    tokenizer = prepare_tokenizer(Tokenizer.from_file(str(artifact / "tokenizer.json")), architecture.vocabulary)
    return task, read, Encoder(tokenizer, task, uses_types=architecture.types > 0).windows(read)


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
        from compression.failures import InterruptedTrainingError, TrainingError
        from compression.recipe import RecipeError

        if isinstance(error, (RecipeError, DataError, CheckpointError, TrainingError, engine.ArtifactError)):
            typer.echo(f"error: {error}", err=True)
            # 128 + the signal's number is what a shell reports of a command that a signal ended.
            sys.exit(128 + error.number if isinstance(error, InterruptedTrainingError) else 2)
