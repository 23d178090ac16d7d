"""Tables of labelled texts: GLUE's files as published, TSV and CSV with a header, JSON lines."""

import csv
import itertools
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from compression.examples import DataError, TextExample, encodable
from compression.recipe import Table, Task

log = logging.getLogger("sparselane")

# How the columns are called in GLUE's files and in most others.
_TEXTS = ("sentence", "text")
_PAIRS = (
    ("sentence1", "sentence2"),  # MNLI, RTE, WNLI
    ("question1", "question2"),  # QQP
    ("question", "sentence"),  # QNLI
    ("#1 String", "#2 String"),  # MRPC
    ("premise", "hypothesis"),  # MNLI on the hub
    ("text", "text_pair"),
)
_LABELS = ("gold_label", "label", "is_duplicate", "Quality")

# The values of a line by column, or what is wrong with it; before it the number of the line.
Row = tuple[int, Mapping[str, Any] | str]

_Row = TypeVar("_Row")
_Example = TypeVar("_Example")


@dataclass(frozen=True)
class Columns:
    """The columns of a table that an example is made of; `pair` is None where it has one text."""

    text: str
    pair: str | None
    label: str


def read_table(path: Path, task: Task, table: Table) -> list[TextExample]:
    """Read a table of texts: CSV (*.csv), JSON lines (*.jsonl), else tab-separated without quoting, as GLUE's files.

    Raises:
        DataError: a missing column; more than `table.bad_lines` lines that cannot be read, with the first of them.
    """
    if path.suffix.lower() == ".csv":
        names, rows = _csv(path, header=table.header)
    elif path.suffix.lower() == ".jsonl":
        names, rows = _json_lines(path)
    else:
        names, rows = _tsv(path, header=table.header)
    columns = find_columns(names, task, table, str(path))

    def make(row: Mapping[str, Any] | str) -> TextExample:
        if isinstance(row, str):
            raise DataError(row)
        return text_example(row, columns, task, table.separator)

    return make_examples(((f"{path}:{number}", row) for number, row in rows), make, table.bad_lines)


def make_examples(rows: Iterable[tuple[str, _Row]], make: Callable[[_Row], _Example], bad_lines: int) -> list[_Example]:
    """Make an example of every row, given behind where it stands; at most `bad_lines` may fail, and are counted.

    Raises DataError, with where, for one more.
    """
    examples: list[_Example] = []
    bad: list[str] = []
    for where, row in rows:
        try:
            examples.append(make(row))
        except DataError as error:
            bad.append(f"{where}: {error}")
            if len(bad) > bad_lines:
                allowed = f" (and {bad_lines} bad lines before it, which is all that data.table.bad_lines allows)"
                raise DataError(bad[-1] + (allowed if bad_lines else "")) from None
    if bad:
        log.warning("%d bad lines skipped, as data.table.bad_lines allows; the first: %s", len(bad), bad[0])
    return examples


def find_columns(names: Sequence[str], task: Task, table: Table, where: str) -> Columns:
    """Choose the columns that the recipe names, or else those that GLUE's files have. Raises DataError for none."""
    for named in (table.text, table.text_pair, table.label):
        if named and named not in names:
            raise DataError(f"{where}: there is no column {named!r}, which data.table names; found {list(names)[:12]}")
    texts: Sequence[tuple[str, str | None]] = _PAIRS if task.pairs else [(name, None) for name in _TEXTS]
    if table.text:
        texts = [(table.text, table.text_pair or None)]
    text = next((pair for pair in texts if all(name is None or name in names for name in pair)), None)
    label = next((name for name in ([table.label] if table.label else _LABELS) if name in names), None)
    if text is None or label is None:
        what = "two texts" if task.pairs else "a text"
        known = " or ".join(" + ".join(name for name in pair if name) for pair in texts)
        raise DataError(
            f"{where}: {task.name} needs columns for {what} ({known}) and for a label "
            f"({table.label or ' or '.join(_LABELS)}); found {list(names)[:12]}; name yours in [data.table]"
        )
    return Columns(text[0], text[1], label)


def text_example(row: Mapping[str, Any], columns: Columns, task: Task, separator: str) -> TextExample:
    """Make an example of a row. Raises DataError, without saying where, for a missing value or an unknown label."""
    texts = [_text(row, name) for name in (columns.text, columns.pair) if name is not None]
    if columns.label not in row:
        raise DataError(f"there is no {columns.label!r}")
    value = row[columns.label]
    if not task.multi_label:
        return TextExample(texts[0], _number(value, task.labels), *texts[1:])
    names = value if isinstance(value, list) else [part.strip() for part in str(value).split(separator)]
    found = {_number(name, task.labels) for name in names if name != ""}
    return TextExample(texts[0], tuple(sorted(found)), *texts[1:])


def _text(row: Mapping[str, Any], column: str) -> str:
    text = row.get(column)
    if not isinstance(text, str):
        raise DataError(f"{column!r} is {text!r}, must be a text")
    return encodable(text.strip())


_INTEGER = re.compile(r"[+-]?[0-9]+")


def _number(value: object, labels: Sequence[str]) -> int:
    """Return the index of a label that is given by its name, or by its index in the recipe's order."""
    name = str(value)
    if name in labels:
        return labels.index(name)
    # Where names are numbers, another number is no place among them.
    by_place = not any(_INTEGER.fullmatch(label) for label in labels)
    if by_place and name.isascii() and name.isdigit() and int(name) < len(labels):
        return int(name)
    shown = f"{list(labels[:12])}" + (f" and {len(labels) - 12} more" if len(labels) > 12 else "")
    places = f" (or 0..{len(labels) - 1})" if by_place else ""
    raise DataError(f"unknown label {name!r}; the recipe knows {shown}{places}")


def _tsv(path: Path, *, header: bool) -> tuple[list[str], Iterator[Row]]:
    """Split at tabs and line feeds alone: a quotation mark, or half of one, is text in these files."""

    def lines() -> Iterator[tuple[int, list[str]]]:
        # MRPC as Microsoft publishes it begins with a byte order mark and ends its lines with CR LF.
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                yield number, line.rstrip("\r\n").split("\t")

    return _named(lines(), header)


def _csv(path: Path, *, header: bool) -> tuple[list[str], Iterator[Row]]:
    def lines() -> Iterator[tuple[int, list[str]]]:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)
            try:
                yield from ((rows.line_num, row) for row in rows)
            except csv.Error as error:
                raise DataError(f"{path}:{rows.line_num}: not CSV: {error}") from error

    return _named(lines(), header)


def _named(lines: Iterator[tuple[int, list[str]]], header: bool) -> tuple[list[str], Iterator[Row]]:
    """Take the column names from the first line, or number the columns from 1; empty lines are left out."""
    full = (line for line in lines if line[1] not in ([], [""]))
    first = next(full, None)
    if first is None:
        return [], iter(())
    names = first[1]
    if not header:
        names = [str(number) for number in range(1, len(names) + 1)]
    elif _is_cola(names):
        names, header = ["source", "label", "mark", "sentence"], False
    kept = full if header else itertools.chain([first], full)
    return names, (
        (number, dict(zip(names, cells, strict=True)))
        if len(cells) == len(names)
        else (number, f"{len(cells)} columns where the first line has {len(names)}")
        for number, cells in kept
    )


def _is_cola(cells: Sequence[str]) -> bool:
    """Whether a first line is data of CoLA, GLUE's one set without header: source, 0 or 1, star or nothing, text."""
    return len(cells) == 4 and cells[1] in ("0", "1") and cells[2] in ("", "*")


def _json_lines(path: Path) -> tuple[list[str], Iterator[Row]]:
    def rows() -> Iterator[Row]:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _json_object(line)

    first = next(rows(), None)
    if first is not None and isinstance(first[1], str):
        raise DataError(f"{path}:{first[0]}: {first[1]}")
    return [] if first is None else list(first[1]), rows()


def _json_object(line: str) -> Mapping[str, Any] | str:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        return f"not JSON: {error}"
    return value if isinstance(value, dict) else f"a JSON object is needed, found {line.strip()[:40]!r}"
