"""Data sets by their name on the Hugging Face hub, or a local folder, read with the `datasets` library."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from compression.data_table import find_columns, make_examples, text_example
from compression.examples import DataError, Example, QuestionExample, TaggedExample, tags_of, to_iob2
from compression.recipe import Table, Task

PREFIX = "hub:"


def read_hub(source: str, task: Task, table: Table) -> list[Example]:
    """Read `hub:NAME:SPLIT` or `hub:NAME:CONFIG:SPLIT`, for example `hub:nyu-mll/glue:mnli:train`.

    Columns: those of a table of texts; `id`, `question`, `context`, `answers` as in `squad`; `tokens` and `ner_tags` as
    in `conll2003`. Classes that the set names are taken by their names. Raises DataError: the library is not installed,
    it cannot load the set, a column is missing, a row does not fit the task (of texts, more than `table.bad_lines`).
    """
    rows = _load(source)
    names = list(rows.column_names)
    make: Callable[[Mapping[str, Any]], Example]
    if task.name == "question-answering":
        make = _question
    elif task.name == "token-classification":
        known = set(tags_of(task.labels))

        def make(row: Mapping[str, Any]) -> Example:
            return _sentence(row, known)

    else:
        columns = find_columns(names, task, table, source)

        def make(row: Mapping[str, Any]) -> Example:
            return text_example(row, columns, task, table.separator)

    classes = {name: found for name in names if (found := _class_names(rows.features[name]))}

    def example(row: Mapping[str, Any]) -> Example:
        named = {name: _named(value, classes[name]) if name in classes else value for name, value in row.items()}
        try:
            return make(named)
        except KeyError as error:
            raise DataError(f"there is no column {error}; found {names}") from error
        except TypeError as error:
            raise DataError(str(error)) from error

    numbered = ((f"{source}: row {number}", row) for number, row in enumerate(rows))
    return make_examples(numbered, example, table.bad_lines)


def _load(source: str) -> Any:
    parts = source.removeprefix(PREFIX).split(":")
    if len(parts) not in (2, 3) or not all(parts):
        raise DataError(f"{source}: a set on the hub is hub:NAME:SPLIT or hub:NAME:CONFIG:SPLIT")
    name, *config, split = parts
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise DataError(f"{source}: sets on the hub need the datasets library: pip install datasets") from error
    try:
        return datasets.load_dataset(name, *config, split=split)
    except Exception as error:  # the library raises a few dozen kinds, of its own and of those below it
        raise DataError(f"{source}: cannot be loaded: {type(error).__name__}: {error}") from error


def _class_names(feature: Any) -> list[str] | None:
    """Return the names of a column of classes, or of lists of them; None for any other column."""
    names: list[str] | None = getattr(getattr(feature, "feature", feature), "names", None)
    return names


def _named(value: Any, names: list[str]) -> Any:
    if isinstance(value, list):
        return [_named(one, names) for one in value]
    with contextlib.suppress(IndexError, TypeError):  # -1 and None are rows without a label: an unknown one, below
        return names[value] if value >= 0 else value
    return value


def _question(row: Mapping[str, Any]) -> Example:
    answers = zip(row["answers"]["answer_start"], row["answers"]["text"], strict=True)
    return QuestionExample(str(row["id"]), row["question"], row["context"], tuple(answers))


def _sentence(row: Mapping[str, Any], known: set[str]) -> Example:
    tags = row["ner_tags"]
    for tag in tags:
        if tag not in known:
            raise DataError(f"unknown tag {tag!r}; the recipe's groups make {sorted(known)}")
    return TaggedExample(tuple(row["tokens"]), to_iob2(tags))
