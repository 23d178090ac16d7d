"""Changed texts: one typo is one slip of the hand, and what is asked for stays in its place."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.judge.perturbations import CHANGES, lower, perturbed, typo, typos, upper
from compression.examples import QuestionExample, TaggedExample, TextExample

WORDS = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ", min_size=4, max_size=12)


def one_slip(word: str) -> set[str]:
    """Every word that is one swap, loss, doubling or neighbouring key away, the first letter kept: all by hand."""
    near = {}
    for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm"):
        for i, key in enumerate(row):
            near[key] = [row[j] for j in (i - 1, i + 1) if 0 <= j < len(row)]
    found = set()
    for i in range(1, len(word)):
        found |= {word[:i] + word[i + 1 :], word[:i] + 2 * word[i] + word[i + 1 :]}
        if i + 1 < len(word):
            found.add(word[:i] + word[i + 1] + word[i] + word[i + 2 :])
        for key in near[word[i].lower()]:
            found.add(word[:i] + (key.upper() if word[i].isupper() else key) + word[i + 1 :])
    return found


@settings(deadline=None)
@given(WORDS, st.integers(0, 10_000))
def test_a_typo_is_one_slip(word: str, seed: int) -> None:
    assert typo(word, np.random.default_rng(seed)) in one_slip(word)


def test_the_share_of_words_and_the_seed_are_kept() -> None:
    text = "a word like others follows, never twice equal " * 200
    before = text.split()
    after = typos(0.2)(3)(text).split()
    changed = sum(a != b for a, b in zip(before, after, strict=True))
    long = sum(len(word.strip(",")) >= 4 for word in before)
    # A swap of equal letters changes nothing, hence a little below.
    assert 0.15 < changed / long < 0.25
    assert typos(0.2)(3)(text).split() == after != typos(0.2)(4)(text).split()
    assert all(a == b for a, b in zip(before, after, strict=True) if len(a.strip(",")) < 4)


@given(st.text(max_size=30))
def test_other_cases_keep_every_code_point_in_its_place(text: str) -> None:
    for changed in (lower(text), upper(text)):
        assert len(changed) == len(text)
        assert all(
            a == b or a.casefold() == b.casefold() or a.lower() == b.lower() for a, b in zip(text, changed, strict=True)
        )


@pytest.mark.parametrize("change", list(CHANGES))
def test_labels_and_answers_stay(change: str) -> None:
    context = "Straße by the river. Nobody remembers the miller of Kleinburg."
    question = QuestionExample("1", "Whom does nobody remember there?", context, ((38, "the miller"),))
    tagged = TaggedExample(("Angela", "visited", "Kleinburg"), ("B-PER", "O", "B-LOC"))
    text = TextExample("wonderful acting everywhere", 1)
    changed = perturbed([question, tagged, text] * 30, change)
    assert changed != [question, tagged, text] * 30 or change == "all lower case"
    for one in changed:
        if isinstance(one, QuestionExample):
            ((start, answer),) = one.answers
            assert one.context[start : start + len(answer)] == answer
            assert answer.lower() == "the miller"
            assert one.context == context or "typos" not in change
        elif isinstance(one, TaggedExample):
            assert one.tags == tagged.tags and len(one.words) == 3
        else:
            assert one.label == 1
