"""Logits to outcomes: what each example gained of what it could, and how sure the model was of each decision."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from seqeval.metrics.sequence_labeling import get_entities

from compression import decode
from compression.checkpoint import model_labels
from compression.encode import Window
from compression.examples import Example, QuestionExample, TaggedExample, TextExample
from compression.metrics import squad_scores
from compression.recipe import Task

Doubles = NDArray[np.float64]
Logits = Sequence[decode.Floats]


@dataclass(frozen=True)
class Decision:
    """One thing that the model said about an example, by its number: a class, an answer or an entity.

    `place` says where in the example, `expected` and `found` what, in labels and numbers and never in words of the
    text, which may not be published. `worth` is from 0, all wrong, to 1. `confidence` is the service's score.
    """

    example: int
    place: str
    expected: str
    found: str
    confidence: float
    worth: float


@dataclass(frozen=True)
class Outcomes:
    """N examples: the metric is 100 x sum of `gained` / sum of `possible`, both float64 [N].

    `together` int [N]: examples with one number are drawn together when the set is drawn again (questions about one
    paragraph). `tokens` int [N]: tokens read, special ones and overlaps included, as the service counts them.
    """

    gained: Doubles
    possible: Doubles
    together: NDArray[np.int64]
    tokens: NDArray[np.int64]
    decisions: tuple[Decision, ...]

    @property
    def score(self) -> float:
        """The metric in percent; 0 where nothing could be gained."""
        return 100 * float(self.gained.sum()) / max(float(self.possible.sum()), 1e-12)

    def take(self, members: NDArray[np.bool_] | NDArray[np.int64]) -> "Outcomes":
        """Return the outcomes of some examples, by mask or rising numbers, without decisions."""
        return Outcomes(self.gained[members], self.possible[members], self.together[members], self.tokens[members], ())


def judge(
    windows: Sequence[Window], logits: Logits, examples: Sequence[Example], task: Task, groups: frozenset[str]
) -> Outcomes:
    """Judge a model's logits, [C] or [T, C] a window, on examples; `groups` are the entity groups that count."""
    judges: dict[str, Callable[[], list[tuple[float, float, list[Decision]]]]] = {
        "text-classification": lambda: _texts(windows, logits, examples, task),
        "question-answering": lambda: _questions(windows, logits, examples, task),
        "token-classification": lambda: _sentences(windows, logits, examples, task, groups),
    }
    rows = judges[task.name]()
    tokens = np.zeros(len(examples), np.int64)
    np.add.at(tokens, [window.example for window in windows], [len(window.ids) for window in windows])
    return Outcomes(
        np.array([gained for gained, _, _ in rows], np.float64),
        np.array([possible for _, possible, _ in rows], np.float64),
        _together(examples),
        tokens,
        tuple(decision for _, _, decisions in rows for decision in decisions),
    )


def _together(examples: Sequence[Example]) -> NDArray[np.int64]:
    numbers: dict[object, int] = {}
    keys = (e.context if isinstance(e, QuestionExample) else i for i, e in enumerate(examples))
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def softmax(logits: Doubles) -> Doubles:
    """Softmax over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def _texts(
    windows: Sequence[Window], logits: Logits, examples: Sequence[Example], task: Task
) -> list[tuple[float, float, list[Decision]]]:
    sums, weights = np.zeros((len(examples), len(task.labels))), np.zeros((len(examples), 1))
    for window, values in zip(windows, logits, strict=True):
        weight = max(1, len(window.ids) - 2)  # as the service averages windows
        sums[window.example] += weight * values.astype(np.float64)
        weights[window.example] += weight
    found, sureness = (sums / weights).argmax(axis=1), softmax(sums / weights).max(axis=1)
    rows = []
    for number, example in enumerate(examples):
        assert isinstance(example, TextExample) and isinstance(example.label, int)
        right = float(found[number] == example.label)
        labels = task.labels[example.label], task.labels[found[number]]
        rows.append((right, 1.0, [Decision(number, "", *labels, float(sureness[number]), right)]))
    return rows


def _questions(
    windows: Sequence[Window], logits: Logits, examples: Sequence[Example], task: Task
) -> list[tuple[float, float, list[Decision]]]:
    spans = decode.best_spans(windows, logits, examples, task.max_answer_tokens)
    sureness = answer_confidence(windows, logits, len(examples), task.max_answer_tokens)
    rows = []
    for number, (example, span) in enumerate(zip(examples, spans, strict=True)):
        assert isinstance(example, QuestionExample)
        guess = example.context[span.start : span.end]
        f1 = squad_scores([guess], [[text for _, text in example.answers]])[1] / 100
        expected = " or ".join(dict.fromkeys(f"{start}-{start + len(text)}" for start, text in example.answers))
        said = Decision(number, "", expected, f"{span.start}-{span.end}", float(sureness[number]), f1)
        rows.append((f1, 1.0, [said]))
    return rows


def answer_confidence(windows: Sequence[Window], logits: Logits, count: int, longest: int) -> Doubles:
    """Return the probability of each question's best span: softmax over all spans of up to `longest` tokens.

    A span in several windows counts once, where it is worth most: the score of `service.question_answering`.
    """
    members: list[list[int]] = [[] for _ in range(count)]
    for place, window in enumerate(windows):
        members[window.example].append(place)
    return np.array([_surest([windows[i] for i in mine], [logits[i] for i in mine], longest) for mine in members])


def _surest(windows: Sequence[Window], logits: Logits, longest: int) -> float:
    numbers = [window.places[window.places[:, 0] >= 0, -1] for window in windows]
    count = 1 + max((int(found.max()) for found in numbers if len(found)), default=-1)
    if not count:
        return 0.0
    worth = np.full((count, longest), -np.inf)
    for window, values in zip(windows, logits, strict=True):
        context = np.flatnonzero(window.places[:, 0] >= 0)
        rows, first = values[context], int(window.places[context[0], -1])
        for extra in range(min(longest, len(rows))):
            column = worth[first : first + len(rows) - extra, extra]
            np.maximum(column, rows[: len(rows) - extra, 0] + rows[extra:, 1], out=column)
    return float(1 / np.exp(worth - worth.max()).sum())


def _sentences(
    windows: Sequence[Window], logits: Logits, examples: Sequence[Example], task: Task, groups: frozenset[str]
) -> list[tuple[float, float, list[Decision]]]:
    names = model_labels(task)
    tags = decode.best_tags(windows, logits, examples, names)
    sureness = _word_confidence(windows, logits, examples)
    rows = []
    for number, (example, found) in enumerate(zip(examples, tags, strict=True)):
        assert isinstance(example, TaggedExample)
        truth = {entity for entity in get_entities(list(example.tags)) if entity[0] in groups}
        guesses = [entity for entity in get_entities(found) if entity[0] in groups]
        right = sum(guess in truth for guess in guesses)
        said = [_entity(number, guess, truth, sureness[number]) for guess in guesses]
        rows.append((2.0 * right, float(len(truth) + len(guesses)), said))
    return rows


def _entity(
    number: int, guess: tuple[str, int, int], truth: set[tuple[str, int, int]], sureness: Sequence[float]
) -> Decision:
    group, first, last = guess
    touched = sorted((a, b, name) for name, a, b in truth if a <= last and first <= b)
    expected = " and ".join(f"{name} {a + 1}-{b + 1}" for a, b, name in touched) or "none"
    confidence = float(np.mean(sureness[first : last + 1]))
    return Decision(number, f"{first + 1}-{last + 1}", expected, group, confidence, float(guess in truth))


def _word_confidence(windows: Sequence[Window], logits: Logits, examples: Sequence[Example]) -> list[list[float]]:
    """Return the probability of each word's best tag, from the window that `decode.best_tags` takes it from."""
    result = [[0.0] * len(e.words) if isinstance(e, TaggedExample) else [] for e in examples]
    depth = [[-1] * len(row) for row in result]
    for window, values in zip(windows, logits, strict=True):
        scores = softmax(values.astype(np.float64)).max(axis=1)
        for token in np.flatnonzero(window.places[:, 0] >= 0):
            word, inside = int(window.places[token, 0]), min(int(token), len(window.ids) - 1 - int(token))
            if inside > depth[window.example][word]:
                depth[window.example][word] = inside
                result[window.example][word] = float(scores[token])
    return result
