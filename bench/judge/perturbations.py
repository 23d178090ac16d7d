"""Texts as people really type them: seeded typos, and other cases of letters."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from bench.judge.sets import SEED
from compression.examples import Example, QuestionExample, TaggedExample, TextExample

Change = Callable[[str], str]

# Keys beside each letter on a QWERTY keyboard, left and right.
_ROWS: Final = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_WORD: Final = re.compile(r"[A-Za-z]{4,}")


def typos(share: float) -> Callable[[int], Change]:
    """Return what puts one typo into about `share` of the words of four letters or more, given an example's number."""

    def of_example(number: int) -> Change:
        random = np.random.default_rng((SEED, number))
        return lambda text: _WORD.sub(
            lambda found: typo(found[0], random) if random.random() < share else found[0], text
        )

    return of_example


def typo(word: str, random: np.random.Generator) -> str:
    """Swap two letters, drop, double or replace one by its neighbour on the keyboard; the first letter stays."""
    at = int(random.integers(1, len(word)))
    kind = int(random.integers(4))
    if kind == 0:
        at = min(at, len(word) - 2)
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    middle = ("", word[at] * 2, _beside(word[at], random))[kind - 1]
    return word[:at] + middle + word[at + 1 :]


def _beside(letter: str, random: np.random.Generator) -> str:
    row = next(row for row in _ROWS if letter.lower() in row)
    at = row.index(letter.lower())
    choices = row[max(0, at - 1) : at] + row[at + 1 : at + 2]
    found = choices[int(random.integers(len(choices)))]
    return found.upper() if letter.isupper() else found


def lower(text: str) -> str:
    """Return small letters, each code point at its place."""
    return "".join(_one(letter, letter.lower()) for letter in text)


def upper(text: str) -> str:
    """Return capital letters, each code point at its place (ß stays)."""
    return "".join(_one(letter, letter.upper()) for letter in text)


def _one(letter: str, changed: str) -> str:
    return changed if len(changed) == 1 else letter


# Changes by name. Typos go into questions, not into their contexts: offsets of answers would move.
CHANGES: Final[Mapping[str, Callable[[int], Change]]] = {
    "typos in 10 % of the words": typos(0.1),
    "typos in 20 % of the words": typos(0.2),
    "all lower case": lambda _: lower,
    "ALL UPPER CASE": lambda _: upper,
}


def perturbed(examples: Sequence[Example], name: str) -> list[Example]:
    """Return the examples with their texts changed; labels and tags stay where they are."""
    return [_changed(example, CHANGES[name](number), "typos" in name) for number, example in enumerate(examples)]


def _changed(example: Example, change: Change, moves: bool) -> Example:
    if isinstance(example, TaggedExample):
        return replace(example, words=tuple(change(word) for word in example.words))
    if isinstance(example, TextExample):
        return replace(example, text=change(example.text), pair=example.pair and change(example.pair))
    assert isinstance(example, QuestionExample)
    question = change(example.question)
    if moves:
        return replace(example, question=question)
    context = change(example.context)
    answers = tuple((start, context[start : start + len(text)]) for start, text in example.answers)
    return replace(example, question=question, context=context, answers=answers)
