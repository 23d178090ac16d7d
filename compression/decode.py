"""Logits to predictions, on numpy arrays: the same for the torch model and for the engine."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from compression.encode import Window
from compression.examples import Example, QuestionExample, TaggedExample

Floats = NDArray[np.float32]


class Span(NamedTuple):
    """An answer by its code points.

    `margin`: how much more it is worth than the best span elsewhere in the text;
    `null_margin`: how much more no answer is worth than it.
    """

    start: int
    end: int
    margin: float
    null_margin: float


def best_classes(windows: Sequence[Window], logits: Sequence[Floats], count: int) -> list[int]:
    """Return the class of each of `count` examples: the best logit [C], averaged over windows by their tokens."""
    return [int(values.argmax()) for values in _sums(windows, logits, count)]


def label_sets(windows: Sequence[Window], logits: Sequence[Floats], count: int) -> list[tuple[int, ...]]:
    """Return the labels of each of `count` examples that are more likely than not: those with a mean logit above 0."""
    return [tuple(np.flatnonzero(values > 0).tolist()) for values in _sums(windows, logits, count)]


def _sums(windows: Sequence[Window], logits: Sequence[Floats], count: int) -> list[Floats]:
    """Sum each example's logits [C] over its windows, weighted by their tokens."""
    sums: dict[int, Floats] = {}
    for window, values in zip(windows, logits, strict=True):
        # The two special tokens of a window do not count; a text without words has only those.
        weight = max(1, len(window.ids) - 2)
        sums[window.example] = sums.get(window.example, np.zeros_like(values)) + weight * values
    return [sums[number] for number in range(count)]


def best_spans(
    windows: Sequence[Window], logits: Sequence[Floats], examples: Sequence[Example], longest: int
) -> list[Span]:
    """Return each question's answer; logits are [T, 2] per window.

    The answer maximizes start logit + end logit over context tokens with start <= end < start + `longest`, over all
    windows, and grows to whole words, as the service's do. No answer is worth start logit + end logit of [CLS], in the
    window where that is least: Devlin et al., arXiv 1810.04805, section 4.3, and the BERT authors' run_squad.
    """
    best: dict[int, list[_Found]] = {}
    null = np.full(len(examples), np.inf)
    for window, values in zip(windows, logits, strict=True):
        best.setdefault(window.example, []).extend(_spans(window, values, longest))
        null[window.example] = min(null[window.example], float(values[0].sum()))
    result = []
    for number, example in enumerate(examples):
        assert isinstance(example, QuestionExample)
        spans = sorted(best.get(number, ()), reverse=True)
        if not spans:
            result.append(Span(0, 0, 0.0, 0.0))
            continue
        score, start, end, first, last = spans[0]
        other = next((s for s, a, b, *_ in spans if b <= start or a >= end), -np.inf)
        result.append(Span(first, last, float(score - other), float(null[number] - score)))
    return result


# What a span is worth, its code points, and those of the words it begins and ends in.
_Found = tuple[float, int, int, int, int]


def _spans(window: Window, logits: Floats, longest: int, keep: int = 10) -> list[_Found]:
    context = np.flatnonzero(window.places[:, 0] >= 0)
    if not len(context):
        return []
    places, values = window.places[context], logits[context]
    # score[s, e - s] for answers of up to `longest` tokens.
    width = min(longest, len(context))
    ends = np.full((len(context), width), -np.inf, np.float32)
    for extra in range(width):
        ends[: len(context) - extra, extra] = values[extra:, 1]
    scores = (values[:, :1] + ends).ravel()
    top = np.argsort(-scores, kind="stable")[:keep]
    found = [(scores[i], places[i // width], places[i // width + i % width]) for i in top if np.isfinite(scores[i])]
    return [(float(score), int(a[0]), int(b[1]), int(a[2]), int(b[3])) for score, a, b in found]


def best_tags(
    windows: Sequence[Window], logits: Sequence[Floats], examples: Sequence[Example], names: Sequence[str]
) -> list[list[str]]:
    """Return one tag a word; logits are [T, tags] per window; a word without tokens is O.

    A word in two windows takes its tag from the one where it lies farther from an edge.
    """
    result = [["O"] * len(_words(example)) for example in examples]
    depth = [[-1] * len(tags) for tags in result]
    for window, values in zip(windows, logits, strict=True):
        for token in np.flatnonzero(window.places[:, 0] >= 0):
            word, inside = int(window.places[token, 0]), min(int(token), len(window.ids) - 1 - int(token))
            if inside > depth[window.example][word]:
                depth[window.example][word] = inside
                result[window.example][word] = names[int(values[token].argmax())]
    return result


def _words(example: Example) -> tuple[str, ...]:
    assert isinstance(example, TaggedExample)
    return example.words
