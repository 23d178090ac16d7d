"""Files to examples: which reader a task and a file need; SQuAD JSON and CoNLL columns. No tokens here."""

import json
import logging
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compression.data_hub import PREFIX, read_hub
from compression.data_table import read_table
from compression.examples import (
    DataError,
    Example,
    QuestionExample,
    TaggedExample,
    TextExample,
    encodable,
    tags_of,
    to_iob2,
)
from compression.recipe import Data, Table, Task

log = logging.getLogger("sparselane")

__all__ = [
    "DataError",
    "Example",
    "QuestionExample",
    "TaggedExample",
    "TextExample",
    "check_sources",
    "find_source",
    "read_conll",
    "read_contexts",
    "read_examples",
    "read_sources",
    "read_squad",
    "read_training",
    "tags_of",
    "to_iob2",
]


def find_source(folder: Path, name: str) -> Path | str:
    """Return what `read_examples` reads: a file in the data folder, or a set on the hub as it is named."""
    return name if name.startswith(PREFIX) else folder / name


def read_training(folder: Path, task: Task, data: Data) -> list[Example]:
    """Read what a recipe trains on: its file or set without what is left out, at most as many examples as it says.

    Raises DataError as `read_examples` does, and for a `leave_out` that no article has.
    """
    source = find_source(folder, data.train)
    examples = read_examples(source, task, data.table)
    if data.leave_out:
        origins = {example.source for example in examples if isinstance(example, QuestionExample)}
        check_sources(str(source), origins, data.leave_out, "data.leave_out")
        examples = [e for e in examples if isinstance(e, QuestionExample) and e.source not in data.leave_out]
        if not examples:
            raise DataError(f"{source}: data.leave_out leaves nothing to train on")
    return examples[: data.train_limit or None]


def read_examples(source: Path | str, task: Task, table: Table | None = None) -> list[Example]:
    """Read the file, or the set on the hub, that a task trains or is judged on; `table` names a table's columns.

    Raises:
        DataError: missing or empty file, a format that does not fit the task, an unknown label.
    """
    examples = _read(source, task, table or Table())
    if not examples:
        raise DataError(f"{source}: holds no examples for {task.name}")
    for example in examples:
        if isinstance(example, QuestionExample):
            _check_answers(example, task, str(source))
    return examples


def _read(source: Path | str, task: Task, table: Table) -> list[Example]:
    if isinstance(source, str):
        return read_hub(source, task, table)
    if not source.is_file():
        raise DataError(f"{source}: no such file; give the folder that holds it with --data")
    try:
        if task.name == "question-answering":
            return [*read_squad(source)]
        if task.name == "text-classification":
            return [*read_table(source, task, table)]
        return [*read_conll(source, task.labels)]
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: not UTF-8 text: {error}") from error


def _check_answers(example: QuestionExample, task: Task, where: str) -> None:
    if not example.answers and not task.no_answer:
        raise DataError(f"{where}: question {example.id} has no answer; for SQuAD v2.0 set task.no_answer = true")
    for start, text in example.answers:
        if example.context[start : start + len(text)] != text:
            raise DataError(f"{where}: question {example.id}: answer {text!r} is not at {start} of its context")


def read_squad(path: Path) -> list[QuestionExample]:
    """Read SQuAD JSON, v1.1 or v2.0, where questions without answers are those that the context does not answer.

    Raises DataError for other content.
    """
    with _squad_errors(path, "question-answering"):
        return [
            QuestionExample(
                id=str(qa["id"]),
                question=encodable(qa["question"]),
                context=encodable(paragraph["context"]),
                answers=tuple((int(answer["answer_start"]), answer["text"]) for answer in qa["answers"]),
                source=str(article.get("source", "")),
            )
            for article, paragraph in _paragraphs(path)
            for qa in paragraph["qas"]
        ]


def read_contexts(path: Path, sources: tuple[str, ...] = ()) -> list[str]:
    """Read the contexts of SQuAD JSON without their questions, of articles whose field `source` is in `sources`.

    Without `sources` all. Raises DataError for a missing file and other content.
    """
    return [context for source, context in _contexts(path) if not sources or source in sources]


def read_sources(path: Path) -> set[str]:
    """Read which values the field `source` has in SQuAD JSON. Raises DataError as `read_contexts` does."""
    return {source for source, _ in _contexts(path)}


def check_sources(where: str, there: Collection[str], wanted: Iterable[str], key: str) -> None:
    """Raise DataError for a value of `source` that a recipe's `key` names and no article of `where` has."""
    for name in wanted:
        if name not in there:
            found = ", ".join(sorted(filter(None, there))) or "none"
            raise DataError(f'{where}: no article has "source": "{name}", as {key} says; found: {found}')


def _contexts(path: Path) -> list[tuple[str, str]]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; give the folder that holds it with --data")
    with _squad_errors(path, "data.unlabelled"):
        return [
            (str(article.get("source", "")), encodable(str(paragraph["context"])))
            for article, paragraph in _paragraphs(path)
        ]


def _paragraphs(path: Path) -> list[tuple[Any, Any]]:
    document = json.loads(path.read_text(encoding="utf-8"))
    return [(article, paragraph) for article in document["data"] for paragraph in article["paragraphs"]]


@contextmanager
def _squad_errors(path: Path, reader: str) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: {error}") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a SQuAD JSON file, as {reader} needs: {error!r}") from error


def read_conll(path: Path, groups: tuple[str, ...]) -> list[TaggedExample]:
    """Read CoNLL columns: a word a line, tag last, blank line between sentences; IOB1 and IOB2 become IOB2.

    Where a line has a tab, columns are what stands between tabs. Lines with a tag and no word, such as a lost emoji
    leaves, are left out and counted. Raises DataError for another tag than those of `groups`.
    """
    examples: list[TaggedExample] = []
    words: list[str] = []
    tags: list[str] = []
    blank: list[int] = []
    known = set(tags_of(groups))
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            columns = _columns(line)
            if not columns or columns[0] == "-DOCSTART-":
                if words:
                    examples.append(TaggedExample(tuple(words), to_iob2(tags)))
                    words, tags = [], []
                continue
            if len(columns) < 2:
                raise DataError(f"{path}:{number}: token-classification needs a word and a tag, found {line.strip()!r}")
            if columns[-1] not in known:
                raise DataError(f"{path}:{number}: unknown tag {columns[-1]!r}; the recipe's groups are {list(groups)}")
            if not columns[0]:
                blank.append(number)
                continue
            words.append(columns[0])
            tags.append(columns[-1])
    if words:
        examples.append(TaggedExample(tuple(words), to_iob2(tags)))
    if blank:
        log.warning("%s: %d lines without a word left out, the first is line %d", path, len(blank), blank[0])
    return examples


def _columns(line: str) -> list[str]:
    filled = line.rstrip()
    return [column.strip() for column in filled.split("\t")] if "\t" in filled else filled.split()
