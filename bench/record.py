"""A record: a folder with raw CSV files, machine.txt and what is generated from them. Names no host, user or path."""

import csv
import datetime
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.crew import ROOT
from bench.environments import versions

RECORDS = Path(__file__).parent / "record"
# What the peers are, of all packages in their environments.
_PACKAGES = re.compile(
    r"numpy|torch|transformers|onnx|onnxruntime|openvino|nncf|ctranslate2|deepsparse|sparselane|uvicorn"
)


def default_folder(today: datetime.date) -> Path:
    """Return bench/record/DATE_CPU."""
    return RECORDS / f"{today.isoformat()}_{re.sub('[^A-Za-z0-9]+', '-', cpu_name()).strip('-')}"


def cpu_name() -> str:
    """Return the CPU's name without marks."""
    found = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return re.sub(r"\((R|TM)\)", "", found.group(1)).strip() if found else platform.machine()


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as CSV, under another name until all are there; the columns are those of all rows, in order."""
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    path.parent.mkdir(parents=True, exist_ok=True)  # it was there when the measurement began, perhaps an hour ago
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    unfinished.rename(path)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read rows as they were written, all values as text; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def machine_text(command: str, pythons: Mapping[str, Path], load_before: tuple[float, float, float]) -> str:
    """Describe machine, versions, command, date and load."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    lines = [
        f"command: {without_paths(command)}",
        f"date: {now}",
        f"commit: {_commit()}",
        f"load average before: {' '.join(f'{value:.2f}' for value in load_before)}",
        f"load average after: {' '.join(f'{value:.2f}' for value in os.getloadavg())}",
        f"cpu: {cpu_name()}",
        f"cpus usable: {len(os.sched_getaffinity(0))}",
        *(f"cache: {cache}" for cache in _caches()),
        f"memory: {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        f"kernel: {platform.system()} {platform.release()}",
        f"compiler: {_compiler()}",
        f"python: {platform.python_version()}",
    ]
    for name, python in pythons.items():
        found = (f"{package} {version}" for package, version in versions(python).items() if _PACKAGES.match(package))
        lines.append(f"packages, {name}: {', '.join(found)}")
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return "\n".join([*lines, f"flags: {flags.group(1) if flags else 'unknown'}"]) + "\n"


def without_paths(text: str) -> str:
    """Shorten absolute paths to their last part."""
    return re.sub(r"(?<![\w.])/(?:[^\s/=,:'\"]+/)*([^\s/=,:'\"]+)", r"\1", text)


def _caches() -> Iterable[str]:
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (_read(index / name).strip() for name in ("level", "type", "size"))
        yield f"L{level} {kind.lower()} {size}"


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "--short", "HEAD")
        changes = git("status", "--porcelain", "--", ".", ":!bench/record")  # the record itself is none
        return f"{commit or 'unknown'}{', with changes' if changes else ''}"
    except OSError:
        return "unknown"


def _compiler() -> str:
    try:
        done = subprocess.run([os.environ.get("CXX", "c++"), "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return "none"
    return done.stdout.partition("\n")[0]


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
