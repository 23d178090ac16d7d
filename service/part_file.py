"""What an offline run has done so far, kept so that it can go on after any end; and the files it becomes.

One line of JSON for each row, good or bad, in the order of the input, behind a line that says of which run. One file,
so that a torn write costs the last line at most and no row is lost or done twice.
"""

import csv
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, Final, TextIO

from service.errors import StartupError
from service.rows import PREDICTED, Form

# A power cut costs at most this much work; kill -9 alone costs none.
SYNC_SECONDS: Final = 1.0

Record = Mapping[str, Any]


class PartFile:
    """The part file of one run, open for appending. `line`, `check`: of the last row in it; `done`, `failed`: rows."""

    def __init__(self, path: Path, run: Record) -> None:
        """Open `path`, cut off a torn last line, or begin it for `run`.

        Raises:
            StartupError: it is of another run, or another process writes it.
        """
        self.path = path
        self.line = self.check = self.done = self.failed = 0
        self._file = path.open("ab")
        try:
            self._lock()
            whole = self._read(run)
        except (StartupError, ValueError):
            self._file.close()
            raise
        self._file.truncate(whole)
        self._synced = monotonic()
        if not whole:
            self._write(run)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StartupError(f"another process writes {self.path}; wait for it, or choose another --output") from None

    def _read(self, run: Record) -> int:
        whole = 0
        with self.path.open("rb") as file:
            for number, raw in enumerate(file):
                if not raw.endswith(b"\n"):
                    break
                record = json.loads(raw)
                if not number and record != run:
                    changed = [name for name in run if record.get(name) != run[name]]
                    message = f"{self.path} is of a run with another {' and '.join(changed)}: finish that, or delete it"
                    raise StartupError(message)
                if number:
                    self._count(record)
                whole += len(raw)
        return whole

    def _count(self, record: Record) -> None:
        self.line, self.check = record["line"], record["check"]
        self.done += 1
        self.failed += "error" in record

    def append(self, record: Record) -> None:
        """Add a row's record; it has `line`, `check`, and `results` or `error`."""
        self._write(record)
        self._count(record)

    def _write(self, record: Record) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        self._file.flush()
        if monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = monotonic()

    def close(self) -> None:
        """Put everything on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def records(self) -> Iterator[dict[str, Any]]:
        """Read the rows' records."""
        with self.path.open(encoding="utf-8") as file:
            next(file)
            yield from map(json.loads, file)


def finish(part: PartFile, output: Path, errors: Path, form: Form) -> None:
    """Make `output` of the good rows and `errors` of the bad ones, if there are any; then remove the part file.

    Both appear whole under their names or not at all; after a kill in between the next run makes them again.
    """
    with _renamed(output) as file:
        (_write_csv if form == "csv" else _write_ndjson)(file, part)
    if part.failed:
        with _renamed(errors) as file:
            for record in part.records():
                if "error" in record:
                    file.write(
                        json.dumps({"line": record["line"], "error": record["error"]}, ensure_ascii=False) + "\n"
                    )
    part.path.unlink()


@contextmanager
def _renamed(path: Path) -> Iterator[TextIO]:
    unfinished = path.with_name(path.name + ".unfinished")
    # A carried field may hold half a surrogate pair, which JSON can spell and UTF-8 cannot: written as JSON spells it.
    with unfinished.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def shown_row(record: Record) -> dict[str, Any]:
    """Return a good row as the output shows it."""
    return {**record["carried"], "line": record["line"], "results": record["results"]}


def _write_ndjson(file: TextIO, part: PartFile) -> None:
    for record in part.records():
        if "error" not in record:
            file.write(json.dumps(shown_row(record), ensure_ascii=False) + "\n")


def _write_csv(file: TextIO, part: PartFile) -> None:
    """Write what was carried, the fields of the best answer or label, and all of them as JSON."""
    carried: dict[str, None] = {}
    best: dict[str, None] = {}
    for record in part.records():
        carried |= dict.fromkeys(record.get("carried", {}))
        best |= dict.fromkeys(_best(record))
    writer = csv.DictWriter(file, list(dict.fromkeys([*carried, "line", *best, "results"])), lineterminator="\n")
    writer.writeheader()
    for record in part.records():
        if "error" not in record:
            results = json.dumps(record["results"], ensure_ascii=False)
            writer.writerow({**shown_row(record), **_best(record), "results": results})


def _best(record: Record) -> dict[str, Any]:
    """Return the fields of the first entry, renamed: a column `label` may be the one to compare with."""
    entries = record.get("results") or [{}]
    return {} if "entity_group" in entries[0] else {f"{PREDICTED}{name}": value for name, value in entries[0].items()}
