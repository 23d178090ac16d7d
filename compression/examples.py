"""What a task learns from: questions, texts and tagged sentences, whatever file they came in. No tokens here."""

from collections.abc import Iterable
from dataclasses import dataclass

from engine.artifact import SURROGATES


class DataError(ValueError):
    """Data that do not hold what the task needs; the message names file, line and value."""


@dataclass(frozen=True)
class QuestionExample:
    """A question on a context; `answers` are (first code point, text) pairs, the first one is trained on.

    Without answers the context does not answer it (SQuAD v2.0). `source` says where its article comes from, if it does.
    """

    id: str
    question: str
    context: str
    answers: tuple[tuple[int, str], ...]
    source: str = ""


@dataclass(frozen=True)
class TextExample:
    """A text, or a pair of texts, and the index of its class; for multi-label tasks the rising indices of all."""

    text: str
    label: int | tuple[int, ...]
    pair: str | None = None


@dataclass(frozen=True)
class TaggedExample:
    """A sentence as words with one IOB2 tag each."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


Example = QuestionExample | TextExample | TaggedExample


def encodable(text: str) -> str:
    """Return a text that UTF-8, and so a tokenizer, can hold: JSON can write half a surrogate pair.

    Raises DataError for one, without saying where.
    """
    if half := SURROGATES.search(text):
        before = text[max(0, half.start() - 20) : half.end()]
        raise DataError(f"half a surrogate pair, such as half an emoji, at the end of {before!r}")
    return text


def tags_of(groups: Iterable[str]) -> tuple[str, ...]:
    """IOB2 tags for entity groups: O, then B- and I- of each group in order."""
    return ("O", *(f"{prefix}-{group}" for group in groups for prefix in "BI"))


def to_iob2(tags: Iterable[str]) -> tuple[str, ...]:
    """Rewrite IOB1 tags as IOB2: an entity's first tag is B-, also where IOB1 writes I-; IOB2 is left as it is."""
    result: list[str] = []
    before = "O"
    for tag in tags:
        starts = tag.startswith("I-") and before[2:] != tag[2:]
        result.append("B-" + tag[2:] if starts else tag)
        before = tag
    return tuple(result)
