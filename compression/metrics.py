"""Predictions to the numbers the field reports."""

import re
import string
from collections import Counter
from collections.abc import Sequence

from seqeval.metrics import f1_score
from sklearn.metrics import accuracy_score

# The one number of a task that a manifest quotes.
HEADLINE = {"question-answering": "f1", "text-classification": "accuracy", "token-classification": "entity_f1"}


def accuracy(predicted: Sequence[int], expected: Sequence[int]) -> float:
    """Share of examples with the right class."""
    return float(accuracy_score(expected, predicted))


def entity_f1(predicted: Sequence[Sequence[str]], expected: Sequence[Sequence[str]]) -> float:
    """Micro-averaged F1 of exact entities (span and type) as the CoNLL script counts them."""
    return float(f1_score([list(tags) for tags in expected], [list(tags) for tags in predicted], zero_division=0))


def squad_scores(predicted: Sequence[str], expected: Sequence[Sequence[str]]) -> tuple[float, float]:
    """Return (exact match, F1) in percent, defined as in the SQuAD v1.1 evaluation (arXiv 1606.05250, section 6.1)."""
    pairs = list(zip(predicted, expected, strict=True))
    exact = [max(float(_normal(guess) == _normal(truth)) for truth in truths) for guess, truths in pairs]
    f1 = [max(_overlap(guess, truth) for truth in truths) for guess, truths in pairs]
    return 100 * sum(exact) / len(exact), 100 * sum(f1) / len(f1)


def _normal(answer: str) -> str:
    bare = "".join(letter for letter in answer.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def _overlap(guess: str, truth: str) -> float:
    guess_words, truth_words = _normal(guess).split(), _normal(truth).split()
    common = sum((Counter(guess_words) & Counter(truth_words)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(guess_words), common / len(truth_words)
    return 2 * precision * recall / (precision + recall)
