"""The `sparselane` command: serve, predict, inspect, plan, key."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console

from service.errors import CANNOT_START, ServiceError, StartupError, nearest
from service.logs import prepare
from service.settings import Settings, as_environment, load_settings

if TYPE_CHECKING:  # loading these takes longer than --help should
    from service.models import Model
    from service.part_file import Record
    from service.rows import Row

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
    probe_port: Annotated[int | None, typer.Option(help="Port of probes and metrics; 0 takes a free one.")] = None,
    models_dir: ModelsDir = None,
    threads: Annotated[int | None, typer.Option(help="Engine threads; default: the CPU quota.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings file (TOML); options and environment win.")] = None,
) -> None:
    """Answer requests until SIGTERM; every SPARSELANE_* variable that is not an option is in docs/operations.md."""
    given: dict[str, Any] = {
        "config": config,
        "host": host,
        "port": port,
        "probe_port": probe_port,
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
    source: Annotated[
        Path | None,
        typer.Option("--input", help="NDJSON or CSV file with a column text, or question and context; - is stdin."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="NDJSON or CSV file for the answers; a run that was stopped goes on.")
    ] = None,
    errors: Annotated[Path | None, typer.Option(help="File for bad rows. [default: OUTPUT.errors.ndjson]")] = None,
    form: Annotated[str | None, typer.Option("--format", help="ndjson or csv, where the name does not say.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first bad row.")] = False,
    parameters: Annotated[str, typer.Option(help='As in a request, for example {"top_k": 2}.')] = "{}",
    models_dir: ModelsDir = None,
    threads: Annotated[int | None, typer.Option(help="Engine threads; default: the CPU quota.")] = None,
) -> None:
    """Answer without a server, as a server would: arguments, lines of stdin, or a file.

    Arguments and lines of stdin give a line of JSON each; such lines are texts, or for question answering
    {"question": ..., "context": ...}. A file (--input) is answered many rows at once; its rows keep their other fields.
    """
    from service.loading import GoldenError, load_model
    from service.offline import explained
    from service.pipeline import TASKS, answer_now

    prepare("warning")
    try:
        settings = load_settings(models_dir=models_dir, threads=threads)
        loaded = load_model(_artifact(model, settings.models_dir), settings.threads)
        task = TASKS[loaded.task]
        chosen = task.parameters.model_validate_json(parameters)
        if source is not None or output is not None:
            if inputs or source is None:
                raise StartupError("--output needs --input, and --input takes the place of inputs as arguments")
            code = _predict_file(settings, loaded, chosen, source, output, errors, form, strict)
            raise typer.Exit(code)
        for item in _items(loaded.task, inputs or []):
            entries, _ = answer_now(task, loaded, task.item.validate_python(item), chosen)
            typer.echo(json.dumps([entry.model_dump() for entry in entries], ensure_ascii=False))
    except ValidationError as error:
        _fail(explained(error))
    except (StartupError, GoldenError, ServiceError, ValueError, OSError) as error:
        _fail(str(error))


def _predict_file(
    settings: Settings,
    model: "Model",
    parameters: Any,
    source: Path,
    output: Path | None,
    errors: Path | None,
    form: str | None,
    strict: bool,
) -> int:
    """Answer a file's rows; return the exit code: 1 where a bad row stopped the run."""
    from service.offline import BadRowError, answer_all, answer_to_files
    from service.rows import form_of, read_rows

    piped = str(source) == "-"
    chosen = form_of(None if piped else source, form)
    with sys.stdin.buffer if piped else source.open("rb") as stream:
        rows = read_rows(stream, chosen, model.task)
        try:
            if output is None:
                answer_all(settings, model, parameters, rows, strict=strict, take=_print_record)
            else:
                total = None if piped else source.stat().st_size
                done = answer_to_files(settings, model, parameters, rows, strict, output, errors, chosen, total)
                typer.echo(done, err=True)
        except BadRowError as error:
            typer.echo(f"sparselane: {error}", err=True)
            return 1
    return 0


def _print_record(_: "Row", record: "Record") -> None:
    from service.part_file import shown_row

    if "error" in record:
        typer.echo(f"sparselane: line {record['line']}: {record['error']}", err=True)
    else:
        typer.echo(json.dumps(shown_row(record), ensure_ascii=False))


@app.command()
def key(
    name: Annotated[str, typer.Argument(help="Who will use it: letters, digits, - and _.")],
    role: Annotated[
        Literal["user", "admin"], typer.Option(help="user, or admin, who may also change models.")
    ] = "user",
    tokens_per_minute: Annotated[int | None, typer.Option(min=1, help="Quota; default: none.")] = None,
) -> None:
    """Make an API key. It is printed once, on stderr; its entry for the keys file (SPARSELANE_KEYS_FILE) on stdout."""
    from service.keys import new_key

    try:
        secret, entry = new_key(name, role, tokens_per_minute)
    except StartupError as error:
        _fail(str(error))
    typer.echo(f"The key of {name}, which is kept nowhere: {secret}", err=True)
    typer.echo(entry, nl=False)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="An artifact's folder, or the name of a model in the models folder.")],
    png: Annotated[Path | None, typer.Option(help="Draw zeros and sizes to this file; needs matplotlib.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    models_dir: ModelsDir = None,
) -> None:
    """Show what an artifact is: zeros, kernel format and bytes of every matrix, sizes, quality, provenance."""
    import engine
    from service import inspection
    from service.picture import draw

    try:
        found = inspection.inspect_artifact(_artifact(str(path), load_settings(models_dir=models_dir).models_dir))
        if png is not None:
            draw(found, png)
    except (StartupError, engine.ArtifactError, ValueError, OSError) as error:
        _fail(str(error))
    if as_json:
        typer.echo(json.dumps(inspection.as_json(found), ensure_ascii=False, indent=2))
    else:
        Console().print(inspection.as_tables(found))


@app.command()
def plan(
    qps: Annotated[float, typer.Option(help="Requests a second, at the busiest time.")],
    tokens: Annotated[float, typer.Option(help="Tokens of a request, on average (`usage` in answers).")],
    p99_ms: Annotated[float, typer.Option(help="Milliseconds within which 99 % of answers shall come.")],
    cores: Annotated[int, typer.Option(help="CPUs of a pod.")],
    tokens_p99: Annotated[float | None, typer.Option(help="Tokens that 1 % exceed; default: all are alike.")] = None,
    spare: Annotated[int, typer.Option(help="Pods that may be lost without a late answer.")] = 1,
    model: Annotated[str, typer.Option(help="Name of a model in the models folder, or path of an artifact.")] = "qa",
    curve: Annotated[
        Path | None, typer.Option(help="What requests cost: output of --json elsewhere; default: measure here.")
    ] = None,
    core_hour_price: Annotated[float | None, typer.Option(help="Price of a CPU for an hour; default: none.")] = None,
    gb_hour_price: Annotated[float | None, typer.Option(help="Price of 1 GB for an hour; default: none.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    models_dir: ModelsDir = None,
) -> None:
    """Say how many pods a load needs, what they cost and what bounds them; docs/capacity.md has the model."""
    import engine
    from service import capacity
    from service.capacity_table import as_table
    from service.curve import read_curve
    from service.loading import GoldenError
    from service.measuring import measure_curve, most_threads

    prepare("warning")
    asked = {"qps": qps, "tokens": tokens, "p99_ms": p99_ms, "cores": cores, "tokens_p99": tokens_p99, "spare": spare}
    try:
        demand = capacity.checked_demand(**asked, core_hour_price=core_hour_price, gb_hour_price=gb_hour_price)
        if curve is not None:
            costs = read_curve(curve)
        else:
            settings = load_settings(models_dir=models_dir)
            path, note = _artifact(model, settings.models_dir), Console(stderr=True).print
            costs = measure_curve(
                path, settings.max_batch_tokens, most_threads(cores), lambda what: note(f"measuring {what}")
            )
        found = capacity.plan(demand, costs)
    except (StartupError, GoldenError, engine.ArtifactError, ValueError, OSError) as error:
        _fail(str(error))
    if as_json:
        typer.echo(json.dumps(capacity.as_json(found), indent=2))
    else:
        Console().print(as_table(found))


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
