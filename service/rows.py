"""The rows of an NDJSON or CSV file as inputs of a task; a row that cannot be read says why and stops nothing.

NDJSON: one JSON value a line, `{"question": ..., "context": ...}` or `{"text": ...}`, or just a string in place of the
latter; empty lines are skipped. CSV (RFC 4180): a header with those names. What else a row holds is carried along.
"""

import csv
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Final, Literal

from service.errors import StartupError, nearest, shown

Form = Literal["ndjson", "csv"]
FORMS: Final = MappingProxyType({".ndjson": "ndjson", ".jsonl": "ndjson", ".csv": "csv"})
# Fields that the output adds: one of the same name would be lost. CSV has more of them, PREDICTED and a name.
ADDED: Final = ("line", "results")
PREDICTED: Final = "predicted_"
# One field of a CSV row; Python's own limit, 128 KiB, is below the longest text in four-byte characters.
MAX_FIELD_CHARS: Final = 16 * 1024 * 1024


@dataclass(frozen=True)
class Row:
    """One row. `line`: where it begins, from 1; `item`: the task's input, not checked yet; `wrong`: why there is none.

    `check`: CRC-32 of the file up to here; `end`: bytes up to here.
    """

    line: int
    check: int
    end: int
    item: Any = None
    carried: Mapping[str, Any] = field(default_factory=dict)
    wrong: str | None = None


def form_of(path: Path | None, given: str | None) -> Form:
    """Return the form that was given, or the one of the file's name.

    Raises:
        StartupError: neither says.
    """
    if given in ("ndjson", "csv"):
        return "csv" if given == "csv" else "ndjson"
    found = FORMS.get(path.suffix.lower() if path else "")
    if given is not None or found is None:
        what = f"'{given}'" if given else f"'{path}'" if path else "stdin"
        raise StartupError(f"{what} is neither NDJSON nor CSV by its name: say --format ndjson or --format csv")
    return "csv" if found == "csv" else "ndjson"


def read_rows(stream: BinaryIO, form: Form, task: str) -> Iterator[Row]:
    """Yield the rows of `stream`, each read when it is asked for.

    Raises:
        StartupError: a column that the task needs is missing, or the first row has a field that the output adds.
    """
    names = ("question", "context") if task == "question-answering" else ("text",)
    lines = _Lines(stream)
    yield from _csv_rows(lines, names) if form == "csv" else _ndjson_rows(lines, names)


class _Lines:
    """The lines of a stream as text; bytes that are not UTF-8 become surrogates, which `_fields` finds."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.number = self.check = self.end = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        raw = next(self._stream)
        self.number += 1
        self.check = zlib.crc32(raw, self.check)
        self.end += len(raw)
        return (raw.removeprefix(b"\xef\xbb\xbf") if self.number == 1 else raw).decode("utf-8", "surrogateescape")

    def row(self, line: int, names: tuple[str, ...], fields: Any) -> Row:
        """Return the row that ends here: of its `fields`, or of the message of the ValueError in their place."""
        try:
            if isinstance(fields, Exception):
                raise fields
            item, carried = _item(fields, names)
        except ValueError as error:
            return Row(line, self.check, self.end, wrong=str(error))
        return Row(line, self.check, self.end, item, carried)


def _check_added(taken: Iterable[str]) -> None:
    for name in taken:
        raise StartupError(f"the input has a field '{name}', which the output adds to each row: rename it")


def _ndjson_rows(lines: _Lines, names: tuple[str, ...]) -> Iterator[Row]:
    began = False
    for text in lines:
        if text.strip():
            fields = _parsed(text)
            if not began and isinstance(fields, dict):
                _check_added(name for name in fields if name in ADDED)
            began = True
            yield lines.row(lines.number, names, fields)


def _parsed(text: str) -> Any:
    try:
        text.encode()
        return json.loads(text)
    except UnicodeEncodeError:
        return ValueError("the line is not UTF-8")
    except (ValueError, RecursionError) as error:
        return ValueError(f"the line is no JSON: {error}")


def _csv_rows(lines: _Lines, names: tuple[str, ...]) -> Iterator[Row]:
    csv.field_size_limit(MAX_FIELD_CHARS)
    records = csv.reader(lines)
    header = next(records, [])
    if missing := [name for name in names if name not in header]:
        raise StartupError(f"the CSV file has no column '{missing[0]}'{nearest(missing[0], header)}")
    _check_added(name for name in header if name in ADDED or name.startswith(PREDICTED))
    while True:
        line = lines.number + 1
        try:
            record = next(records)
        except StopIteration:
            return
        except csv.Error as error:
            yield lines.row(line, names, ValueError(f"the row is no CSV: {error}"))
            continue
        if record:
            yield lines.row(line, names, _named(header, record))


def _named(header: list[str], record: list[str]) -> Any:
    if len(record) != len(header):
        return ValueError(f"the row has {len(record)} fields, the header {len(header)}")
    try:
        "".join(record).encode()
    except UnicodeEncodeError:
        return ValueError("the row is not UTF-8")
    return dict(zip(header, record, strict=True))


def _item(fields: Any, names: tuple[str, ...]) -> tuple[Any, dict[str, Any]]:
    """Split a row into the task's input and what is carried along."""
    if isinstance(fields, str) and names == ("text",):
        return fields, {}
    if not isinstance(fields, dict):
        raise ValueError(f"the row is {shown(fields)}, must be an object with {' and '.join(names)}")
    if missing := [name for name in names if name not in fields]:
        raise ValueError(f"the row has no '{missing[0]}'{nearest(missing[0], map(str, fields))}")
    if taken := [name for name in ADDED if name in fields]:
        raise ValueError(f"the row has a field '{taken[0]}', which the output adds to each row: rename it")
    carried = {name: value for name, value in fields.items() if name not in names}
    if names == ("text",):
        return fields["text"], carried
    return {name: fields[name] for name in names}, carried
