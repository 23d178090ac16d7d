"""The `sparselane` command: serve, predict, inspect."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from service.errors import CANNOT_START, ServiceError, StartupError, nearest
from service.logs import prepare
from service.settings import as_environment, load_settings

app = typer.Typer(
    help="Serve sparse, 8-bit BERT models over HTTP.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ModelsDir = Annotated[Path | None, typer.Option(help="Folder with one artifact per subfolder.")]


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    models_dir: ModelsDir = None,
    threads: Annotated[int | None, typer.Option(help="Engine threads; default: the CPU quota.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
) -> None:
    """Answer requests until SIGTERM; every SPARSELANE_* variable that is not an option is in docs/operations.md."""
    given: dict[str, Any] = {
        "host": host,
        "port": port,
        "models_dir": models_dir,
        "threads": threads,
        "log_level": log_level,
    }
    try:
        load_settings(**given)
    except StartupError as error:
        _fail(str(error))
    # A process of its own, which keeps our number: 10 MB of command-line libraries would stay in the server for days.
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "service.server"], {**os.environ, **as_environment(given)})


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="Name of a model in the models folder, or path of an artifact.")],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(help="Texts; for question answering, QUESTION CONTEXT. None: one input per line of stdin."),
    ] = None,
    parameters: Annotated[str, typer.Option(help='As in a request, for example {"top_k": 2}.')] = "{}",
    models_dir: ModelsDir = None,
    threads: Annotated[int | None, typer.Option(help="Engine threads; default: the CPU quota.")] = None,
) -> None:
    """Answer without a server, one line of JSON per input.

    Lines of stdin are texts, or for question answering {"question": ..., "context": ...}.
    """
    from service.loading import GoldenError, load_model
    from service.pipeline import TASKS, answer_now

    prepare("warning")
    try:
        settings = load_settings(models_dir=models_dir, threads=threads)
        loaded = load_model(_artifact(model, settings.models_dir), settings.threads)
        task = TASKS[loaded.task]
        chosen = task.parameters.model_validate_json(parameters)
        for item in _items(loaded.task, inputs or []):
            entries, _ = answer_now(task, loaded, task.item.validate_python(item), chosen)
            typer.echo(json.dumps([entry.model_dump() for entry in entries], ensure_ascii=False))
    except ValidationError as error:
        _fail("; ".join(f"{'.'.join(map(str, e['loc'])) or 'input'}: {e['msg']}" for e in error.errors()))
    except (StartupError, GoldenError, ServiceError, ValueError) as error:
        _fail(str(error))


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="An artifact's folder, or the name of a model in the models folder.")],
) -> None:
    """Show what an artifact is: task, size, sparsity, quality."""
    import engine

    try:
        manifest = engine.read_manifest(_artifact(str(path), load_settings().models_dir))
    except (StartupError, engine.ArtifactError) as error:
        _fail(str(error))
    table = Table("field", "value", title=manifest.name)
    for section in ("architecture", "task", "quantization", "sparsity", "quality", "size"):
        for name, value in manifest.raw[section].items():
            table.add_row(f"{section}.{name}", json.dumps(value))
    table.add_row("golden examples", str(len(manifest.golden)))
    Console().print(table)


def _artifact(name: str, models_dir: Path) -> Path:
    for path in (Path(name), models_dir / name):
        if (path / "manifest.json").is_file():
            return path
    known = sorted(path.parent.name for path in models_dir.glob("*/manifest.json"))
    raise StartupError(f"'{name}' is neither an artifact's folder nor a model in {models_dir}{nearest(name, known)}")


def _items(task: str, arguments: list[str]) -> Iterator[Any]:
    if task != "question-answering":
        yield from arguments or (line.rstrip("\n") for line in sys.stdin)
    elif arguments:
        if len(arguments) % 2:
            raise StartupError(f"question answering takes pairs of QUESTION CONTEXT, not {len(arguments)} arguments")
        for question, context in zip(arguments[::2], arguments[1::2], strict=True):
            yield {"question": question, "context": context}
    else:
        yield from map(json.loads, sys.stdin)


def _fail(message: str) -> NoReturn:
    typer.echo(f"sparselane: {message}", err=True)
    raise typer.Exit(CANNOT_START)
