"""`python -m bench`: the engine's speed as ratios beside its peers, in one run. bench/README.md has the method."""

import argparse
import datetime
import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

import engine
from bench import capacity_level, footprint, http_level, kernel_level, model_level, soak
from bench.capacity_report import write_capacity_report
from bench.ceilings import NoCeilingsError, measure_ceilings
from bench.conversions import ConversionError, Conversions
from bench.crew import WorkerError, WorkerProcess, start
from bench.engines import ENGINES
from bench.environments import pythons
from bench.kernel_products import NoKernelsError
from bench.plan import PURPOSES, Case, default_plan, full_plan, quick_plan
from bench.record import default_folder, machine_text, write_rows
from bench.report import write_report

REPEATS = 7
KERNEL_REPEATS = 30
HTTP_SECONDS = 8.0
HTTP_ROUNDS = 3
FOOTPRINT_REPEATS = 5
SOAK_MINUTES = 20.0


def main(arguments: list[str] | None = None) -> None:
    """Run the levels that were asked for and write the record."""
    options = parser().parse_args(arguments)
    load_before = os.getloadavg()
    found, missing = pythons()
    folder = options.record or default_folder(datetime.datetime.now(datetime.UTC).date())
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        cache = options.cache or Path(stack.enter_context(TemporaryDirectory(prefix="sparselane-bench-")))
        conversions = Conversions(cache.resolve(), found, _note)
        for level in ("kernel", "model", "http") if options.level == "all" else (options.level,):
            _note(f"== {level}")
            try:
                {
                    "kernel": run_kernels,
                    "model": run_models,
                    "http": run_http,
                    "soak": run_soak,
                    "capacity": run_capacity,
                }[level](options, folder, conversions, missing)
            except (NoKernelsError, RuntimeError) as error:
                _note(f"warning: no {level} level: {error}")
    command = f"python -m bench {' '.join(sys.argv[1:] if arguments is None else arguments)}"
    (folder / "machine.txt").write_text(machine_text(command, found, load_before), encoding="utf-8")
    (write_capacity_report if options.level == "capacity" else write_report)(folder)
    _note(f"record: {os.path.relpath(folder)}/README.md")


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    made = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        epilog="Peers are installed by `make bench` or `python -m bench.environments`; without them the run names them "
        "as absent. On a shared machine read ratios, not milliseconds.",
    )
    made.add_argument(
        "level",
        choices=("kernel", "model", "http", "soak", "capacity", "all"),
        help="kernel: our products alone, beside the machine's measured limits. model: whole encoders beside the "
        "peers, load time, memory. http: the running service under open-loop load. "
        "soak: the same for long, is its memory flat? capacity: is `sparselane plan` right? "
        "all: kernel, model and http, one after another.",
    )
    size = made.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a few minutes, small models: does everything run?")
    size.add_argument("--full", action="store_true", help="model level: the whole grid, many hours")
    made.add_argument(
        "--repeats",
        type=int,
        help=f"rounds of the model level (default {REPEATS}; 3 with --quick), of http ({HTTP_ROUNDS}; 1 with --quick)",
    )
    made.add_argument("--minutes", type=float, default=SOAK_MINUTES, help="soak level: how long (default %(default)g)")
    made.add_argument(
        "--realtime", action="store_true", help="model level: samples run before all else on this machine (as root)"
    )
    made.add_argument(
        "--apart", action="store_true", help="http level: the service has a CPU for itself, clients others"
    )
    made.add_argument("--threads", type=int, default=engine.threads_from_quota(), help="most threads (default: quota)")
    made.add_argument("--engines", nargs="+", choices=list(ENGINES), help="model level: only these (default: all)")
    made.add_argument("--models", nargs="+", help="model level: only cases of these models")
    made.add_argument(
        "--purposes", nargs="+", choices=PURPOSES, help="model level: only cases that are measured for one of these"
    )
    made.add_argument("--cache", type=Path, help="keep converted models here (default: a temporary folder, 10 GB)")
    made.add_argument("--record", type=Path, help="folder of the record (default: bench/record/DATE_CPU)")
    return made


def run_models(options: argparse.Namespace, folder: Path, conversions: Conversions, missing: Mapping[str, str]) -> None:
    """Write models.csv, idle.csv and footprint.csv."""
    found, _ = pythons()
    cases = chosen_cases(options)
    repeats = options.repeats or (3 if options.quick else REPEATS)
    with ExitStack() as stack, tqdm(total=len(cases), desc="cases", file=sys.stderr) as bar:
        logs = Path(stack.enter_context(TemporaryDirectory()))

        def start_worker(name: str) -> WorkerProcess:
            if (environment := ENGINES[name].environment) in missing:
                raise WorkerError(missing[environment])
            return start(ENGINES[name], found, logs / f"{name}.log")

        def progress(case: Case) -> None:
            bar.set_postfix_str(f"{case.model} {100 * case.sparsity:g} % {case.shape} threads {case.threads}")

        crew = model_level.Crew(
            start_worker, conversions, stack, lambda text: bar.set_postfix_str(text), realtime=options.realtime
        )
        rows: list[dict[str, Any]] = []
        for case in cases:
            rows += model_level.measure([case], crew, repeats, progress)
            write_rows(folder / "models.csv", rows)  # after every case: a stopped run has not run for nothing
            bar.update()
        write_rows(
            folder / "idle.csv",
            [{"engine": name, "idle_share": round(share, 5)} for name, share in crew.idle_shares().items()],
        )
    write_rows(folder / "footprint.csv", _footprints(options, conversions))


def chosen_cases(options: argparse.Namespace) -> list[Case]:
    """Return the plan, cut to the engines, models and purposes that were asked for."""
    plan = quick_plan if options.quick else full_plan if options.full else default_plan
    cases = []
    for case in plan(options.threads):
        engines = tuple(name for name in case.engines if not options.engines or name in options.engines)
        wanted = not options.models or case.model in options.models
        wanted = wanted and (not options.purposes or case.purpose in options.purposes)
        if engines and wanted:
            cases.append(
                Case(
                    case.model, case.sparsity, case.lengths, case.threads, engines, case.purpose, together=case.together
                )
            )
    return cases


def _footprints(options: argparse.Namespace, conversions: Conversions) -> Iterable[dict[str, Any]]:
    models = ("minilm",) if options.quick else ("bert-base", "distilbert", "bert-large")
    for model in (name for name in models if not options.models or name in options.models):
        try:
            artifact = conversions.path(model, 0.9, "artifact")
        except ConversionError as error:
            _note(f"warning: no footprint of {model}: {error}")
            continue
        _note(f"load and memory of {model}")
        for number in range(2 if options.quick else FOOTPRINT_REPEATS):
            for what, measured in (
                ("engine", footprint.engine_footprint(artifact, options.threads)),
                ("service", footprint.service_footprint(artifact, options.threads)),
            ):
                yield {"model": model, "what": what, "round": number, **measured}


def run_kernels(options: argparse.Namespace, folder: Path, _conversions: Conversions, _missing: object) -> None:
    """Write ceilings.csv and kernels.csv."""
    try:
        ceilings = measure_ceilings()
    except NoCeilingsError as error:
        _note(f"warning: the machine's limits are not measured: {error}")
        ceilings = {}
    write_rows(folder / "ceilings.csv", [{"limit": name, "per_second": value} for name, value in ceilings.items()])
    with tqdm(total=len(kernel_level.cases(quick=options.quick)), desc="products", file=sys.stderr) as bar:

        def progress(text: str) -> None:
            bar.set_postfix_str(text)
            bar.update()

        repeats = 5 if options.quick else KERNEL_REPEATS
        write_rows(
            folder / "kernels.csv", kernel_level.measure(ceilings, repeats, quick=options.quick, progress=progress)
        )


def run_http(options: argparse.Namespace, folder: Path, _conversions: Conversions, _missing: object) -> None:
    """Write http.csv and http_alone.csv."""
    seconds = 1.5 if options.quick else HTTP_SECONDS
    rounds = options.repeats or (1 if options.quick else HTTP_ROUNDS)
    loaded, alone = http_level.measure(options.threads, seconds, rounds, _note, alone_on_cpu=options.apart)
    write_rows(folder / "http.csv", loaded)
    write_rows(folder / "http_alone.csv", alone)


def run_soak(options: argparse.Namespace, folder: Path, _conversions: Conversions, _missing: object) -> None:
    """Write soak_memory.csv and soak_load.csv."""
    memory, load = soak.measure(options.threads, 0.25 if options.quick else options.minutes, _note)
    write_rows(folder / "soak_memory.csv", memory)
    write_rows(folder / "soak_load.csv", load)


def run_capacity(options: argparse.Namespace, folder: Path, _conversions: Conversions, _missing: object) -> None:
    """Write the CSV files of a capacity record."""
    size = capacity_level.QUICK if options.quick else capacity_level.FULL
    for name, rows in capacity_level.measure(size, _note):
        write_rows(folder / f"{name}.csv", rows)


def _note(text: str) -> None:
    tqdm.write(text, file=sys.stderr)


if __name__ == "__main__":
    main()
