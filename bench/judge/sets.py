"""What an artifact is judged on: its recipe's validation set, sets that no choice looked at, and other domains."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from compression.data import find_source, read_conll, read_examples, read_squad, read_training
from compression.encode import IGNORED
from compression.examples import DataError, Example, QuestionExample, TaggedExample, TextExample
from compression.recipe import Recipe, Task
from compression.unlabelled import read_unlabelled

SEED: Final = 0
# A set of which training had a larger share is no test.
MOSTLY_SEEN: Final = 0.5


@dataclass(frozen=True)
class JudgingSet:
    """A named set in `files` of the data folder, which are read one after another.

    `groups`: the set's entity groups with the model's names for them; entities of others do not count, whoever finds
    them. `source`: of a SQuAD file only the articles with this field. `limit`: at most so many examples, drawn once.
    """

    name: str
    files: tuple[str, ...]
    about: str
    groups: Mapping[str, str] | None = None
    source: str = ""
    limit: int = 0


# By the recipe's `data.dataset`. The credits and licences of these sets are in docs/models.md.
OTHERS: Final[Mapping[str, tuple[JudgingSet, ...]]] = {
    "sst-2": (JudgingSet("SST-2 test", ("sst2/test.tsv",), "the same reviews of films, looked at by no choice"),),
    "conll-2003": (
        JudgingSet("CoNLL-2003 testb", ("conll2003/eng.testb",), "the same newswire, later; fitted to by no recipe"),
        JudgingSet("WikiGold", ("ner_open/wikigold/wikigold.conll.txt",), "Wikipedia, annotated as CoNLL is"),
        JudgingSet(
            "WNUT-17 test",
            ("ner_open/wnut17/emerging.test.annotated",),
            "new and rare names in posts and comments; its corporations and groups count as ORG, no MISC",
            {"person": "PER", "location": "LOC", "corporation": "ORG", "group": "ORG"},
        ),
        JudgingSet(
            "Broad Twitter Corpus",
            tuple(f"ner_open/btc/{part}.conll" for part in "abefgh"),
            "tweets; user names after @ are persons there, no MISC",
            {"PER": "PER", "LOC": "LOC", "ORG": "ORG"},
        ),
    ),
    "squad-v1.1": (
        JudgingSet(
            "SQuADShifts, Amazon reviews",
            ("squad/train.json",),
            "questions about reviews of products",
            source="squadshifts_amazon_reviews",
            limit=2000,
        ),
    ),
}
# WNUT-17's groups that CoNLL has no like of.
_NOT_COUNTED: Final = ("creative-work", "product")


def main_set(recipe: Recipe) -> JudgingSet:
    """Return the set that gives an artifact's headline: the one its recipe was validated on."""
    data = recipe.data
    guided = "the recipe" if recipe.task.name == "question-answering" else "the recipe and the scores' temperature"
    return JudgingSet(f"{data.dataset} {data.split}", (data.validation,), f"guided {guided}: flatters a little")


def read_set(chosen: JudgingSet, data: Path, recipe: Recipe) -> tuple[list[Example], int]:
    """Read the examples of a set, in the model's labels, and how many there were before `limit`.

    Raises DataError: a file is missing or not what the task needs.
    """
    found = [example for file in chosen.files for example in _read(chosen, find_source(data, file), recipe)]
    if not chosen.limit or len(found) <= chosen.limit:
        return found, len(found)
    return [found[number] for number in drawn(len(found), chosen.limit)], len(found)


def drawn(count: int, limit: int) -> NDArray[np.int64]:
    """Draw `limit` of `count` examples with the seed of this page; rising numbers, all where there are no more."""
    if count <= limit:
        return np.arange(count)
    return np.sort(np.random.default_rng(SEED).choice(count, limit, replace=False))


def _read(chosen: JudgingSet, source: Path | str, recipe: Recipe) -> Sequence[Example]:
    if isinstance(source, Path) and not source.is_file():
        raise DataError(f"{source}: no such file; give the folder that holds it with --data")
    if chosen.groups is not None and isinstance(source, Path):
        return [_renamed(example, chosen.groups) for example in read_conll(source, (*chosen.groups, *_NOT_COUNTED))]
    if chosen.source and isinstance(source, Path):
        return _of_source(source, chosen.source)
    return read_examples(source, recipe.task, recipe.data.table)


def _renamed(example: TaggedExample, groups: Mapping[str, str]) -> TaggedExample:
    tags = (tag[:2] + groups[tag[2:]] if tag[2:] in groups else "O" for tag in example.tags)
    return TaggedExample(example.words, tuple(tags))


def _of_source(path: Path, source: str) -> list[QuestionExample]:
    examples = [example for example in read_squad(path) if example.source == source]
    if not examples:
        raise DataError(f'{path}: has no articles with "source": "{source}"')
    return examples


def share_seen(examples: Sequence[Example], training: Iterable[Example]) -> float:
    """Return the share of examples that training had letter by letter, case and white space aside; labels do not count.

    Where a sentence is given in words, its punctuation stands alone; in plain text it does not.
    """
    known = {_identity(example) for example in training}
    return sum(_identity(example) in known for example in examples) / len(examples)


def _identity(example: Example) -> tuple[str, ...]:
    if isinstance(example, QuestionExample):
        texts = (example.question, example.context)
    elif isinstance(example, TextExample):
        texts = (example.text, example.pair or "")
    else:
        texts = (" ".join(example.words), "")
    return tuple("".join(text.casefold().split()) for text in texts)


def training_examples(recipe: Recipe, data: Path) -> list[Example]:
    """Read what the recipe trained on, labelled or not. Raises DataError where it is not at hand."""
    texts = read_unlabelled(data, recipe.data, recipe.seed)
    return [*read_training(data, recipe.task, recipe.data), *(TextExample(text, IGNORED) for text in texts)]


def kept_groups(chosen: JudgingSet, task: Task) -> frozenset[str]:
    """Return the entity groups that count on a set."""
    return frozenset(task.labels if chosen.groups is None else chosen.groups.values())
