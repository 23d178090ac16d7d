"""Files to examples: SQuAD JSON, TSV with a label, CoNLL columns. No tokens here."""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from compression.recipe import Task


class DataError(ValueError):
    """A data file that does not hold what the task needs; the message names file, line and value."""


@dataclass(frozen=True)
class QuestionExample:
    """A question on a context; `answers` are (first code point, text) pairs, the first one is trained on."""

    id: str
    question: str
    context: str
    answers: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class TextExample:
    """A text and the index of its class."""

    text: str
    label: int


@dataclass(frozen=True)
class TaggedExample:
    """A sentence as words with one IOB2 tag each."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


Example = QuestionExample | TextExample | TaggedExample


def read_examples(path: Path, task: Task) -> list[Example]:
    """Read the file a task trains or is judged on.

    Raises:
        DataError: missing or empty file, a format that does not fit the task, an unknown label.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; give the folder that holds it with --data")
    examples: list[Example]
    try:
        if task.name == "question-answering":
            examples = [*read_squad(path)]
        elif task.name == "text-classification":
            examples = [*read_tsv(path, task.labels)]
        else:
            examples = [*read_conll(path, task.labels)]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: {error}") from error
    if not examples:
        raise DataError(f"{path}: holds no examples for {task.name}")
    return examples


def tags_of(groups: Iterable[str]) -> tuple[str, ...]:
    """IOB2 tags for entity groups: O, then B- and I- of each group in order."""
    return ("O", *(f"{prefix}-{group}" for group in groups for prefix in "BI"))


def read_squad(path: Path) -> list[QuestionExample]:
    """Read SQuAD v1.1 JSON. Raises DataError for other content or an answer that is not in its context."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        paragraphs = [paragraph for article in document["data"] for paragraph in article["paragraphs"]]
        examples = [
            QuestionExample(
                id=str(qa["id"]),
                question=qa["question"],
                context=paragraph["context"],
                answers=tuple((int(answer["answer_start"]), answer["text"]) for answer in qa["answers"]),
            )
            for paragraph in paragraphs
            for qa in paragraph["qas"]
        ]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a SQuAD v1.1 JSON file, as question-answering needs: {error!r}") from error
    for example in examples:
        if not example.answers:
            raise DataError(f"{path}: question {example.id} has no answer; SQuAD v2 files are not supported yet")
        for start, text in example.answers:
            if example.context[start : start + len(text)] != text:
                raise DataError(f"{path}: question {example.id}: answer {text!r} is not at {start} of its context")
    return examples


def read_tsv(path: Path, labels: tuple[str, ...]) -> list[TextExample]:
    """Read a tab-separated file with a header; columns `sentence` (or `text`) and `label` (a name or an index)."""
    with path.open(encoding="utf-8", newline="") as lines:
        rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        header = next(rows, [])
        text_column = next((name for name in ("sentence", "text") if name in header), None)
        if text_column is None or "label" not in header:
            raise DataError(
                f"{path}:1: text-classification needs a tab-separated header with 'sentence' (or 'text') and 'label'; "
                f"found {header[:6]!r}"
            )
        text_at, label_at = header.index(text_column), header.index("label")
        examples = []
        for number, row in enumerate(rows, start=2):
            if len(row) != len(header):
                raise DataError(f"{path}:{number}: {len(row)} columns where the header has {len(header)}")
            examples.append(TextExample(row[text_at].strip(), _label(row[label_at], labels, f"{path}:{number}")))
    return examples


def _label(value: str, labels: tuple[str, ...], where: str) -> int:
    if value in labels:
        return labels.index(value)
    if value.isascii() and value.isdigit() and int(value) < len(labels):
        return int(value)
    raise DataError(f"{where}: unknown label {value!r}; the recipe knows {list(labels)} (or 0..{len(labels) - 1})")


def read_conll(path: Path, groups: tuple[str, ...]) -> list[TaggedExample]:
    """Read CoNLL columns: a word a line, tag last, blank line between sentences; IOB1 and IOB2 become IOB2."""
    examples: list[TaggedExample] = []
    words: list[str] = []
    tags: list[str] = []
    known = set(tags_of(groups))
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            columns = line.split()
            if not columns or columns[0] == "-DOCSTART-":
                if words:
                    examples.append(TaggedExample(tuple(words), to_iob2(tags)))
                    words, tags = [], []
                continue
            if len(columns) < 2:
                raise DataError(f"{path}:{number}: token-classification needs a word and a tag, found {line.strip()!r}")
            if columns[-1] not in known:
                raise DataError(f"{path}:{number}: unknown tag {columns[-1]!r}; the recipe's groups are {list(groups)}")
            words.append(columns[0])
            tags.append(columns[-1])
    if words:
        examples.append(TaggedExample(tuple(words), to_iob2(tags)))
    return examples


def to_iob2(tags: Iterable[str]) -> tuple[str, ...]:
    """Rewrite IOB1 tags as IOB2: an entity's first tag is B-, also where IOB1 writes I-; IOB2 is left as it is."""
    result: list[str] = []
    before = "O"
    for tag in tags:
        starts = tag.startswith("I-") and before[2:] != tag[2:]
        result.append("B-" + tag[2:] if starts else tag)
        before = tag
    return tuple(result)
