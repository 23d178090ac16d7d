"""Logits to predictions, on numpy arrays: the same for the torch model and for the engine."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from compression.data import Example, QuestionExample, TaggedExample
from compression.encode import Window

Floats = NDArray[np.float32]


def best_classes(windows: Sequence[Window], logits: Sequence[Floats], count: int) -> list[int]:
    """Return the class of each of `count` examples: the best logit [C], averaged over windows by their tokens."""
    sums: dict[int, Floats] = {}
    for window, values in zip(windows, logits, strict=True):
        # The two special tokens of a window do not count; a text without words has only those.
        weight = max(1, len(window.ids) - 2)
        sums[window.example] = sums.get(window.example, np.zeros_like(values)) + weight * values
    return [int(sums[number].argmax()) for number in range(count)]


def best_spans(
    windows: Sequence[Window], logits: Sequence[Floats], examples: Sequence[Example], longest: int
) -> list[tuple[int, int, float]]:
    """Return (first code point, end code point, margin) of each question's answer; logits are [T, 2] per window.

    The answer maximizes start logit + end logit over context tokens with start <= end < start + `longest`, over all
    windows, and grows to whole words. The margin is the distance to the best span elsewhere in the text.
    """
    best: dict[int, list[tuple[float, int, int]]] = {}
    for window, values in zip(windows, logits, strict=True):
        best.setdefault(window.example, []).extend(_spans(window, values, longest))
    result = []
    for number, example in enumerate(examples):
        assert isinstance(example, QuestionExample)
        spans = sorted(best.get(number, ()), reverse=True)
        if not spans:
            result.append((0, 0, 0.0))
            continue
        score, start, end = spans[0]
        other = next((s for s, a, b in spans if b <= start or a >= end), -np.inf)
        result.append((*_whole_words(example.context, start, end), float(score - other)))
    return result


def _spans(window: Window, logits: Floats, longest: int, keep: int = 10) -> list[tuple[float, int, int]]:
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
    return [
        (float(scores[i]), int(places[i // width, 0]), int(places[i // width + i % width, 1]))
        for i in top
        if np.isfinite(scores[i])
    ]


def _whole_words(text: str, start: int, end: int) -> tuple[int, int]:
    while start > 0 and text[start].isalnum() and text[start - 1].isalnum():
        start -= 1
    while end < len(text) and text[end - 1].isalnum() and text[end].isalnum():
        end += 1
    return start, end


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
