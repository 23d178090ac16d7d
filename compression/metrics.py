"""Predictions to the numbers the field reports."""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from seqeval.metrics import f1_score as entity_f1_score
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from compression.recipe import Task, metrics_of


def headline(task: Task) -> str:
    """Name the one score of a task that a manifest quotes."""
    if task.name == "text-classification":
        return task.metric or metrics_of(task)[0]
    if task.name == "token-classification":
        return "entity_f1"
    return "best_f1" if task.no_answer else "f1"


def class_scores(predicted: Sequence[int], expected: Sequence[int], classes: int) -> dict[str, float]:
    """Accuracy; with two classes also F1 of the second (MRPC, QQP) and Matthews' correlation (CoLA).

    Wang et al., GLUE, arXiv 1804.07461, table 1.
    """
    scores = {"accuracy": float(accuracy_score(expected, predicted))}
    if classes == 2:
        scores["f1"] = float(f1_score(expected, predicted, labels=[1], average="macro", zero_division=0))
        # Undefined where there is one class alone: 0, as without any correlation.
        varied = len({*expected, *predicted}) > 1
        scores["matthews"] = float(matthews_corrcoef(expected, predicted)) if varied else 0.0
    return scores


def label_set_scores(
    predicted: Sequence[Sequence[int]], expected: Sequence[Sequence[int]], labels: int
) -> dict[str, float]:
    """Micro and macro F1 over labels, and the share of examples with exactly the right set of them."""
    truth, guess = (_indicators(sets, labels) for sets in (expected, predicted))
    return {
        "micro_f1": float(f1_score(truth, guess, average="micro", zero_division=0)),
        "macro_f1": float(f1_score(truth, guess, average="macro", zero_division=0)),
        "subset_accuracy": float(accuracy_score(truth, guess)),
    }


def _indicators(sets: Sequence[Sequence[int]], labels: int) -> NDArray[np.int8]:
    rows = np.zeros((len(sets), labels), np.int8)
    for row, indices in zip(rows, sets, strict=True):
        row[list(indices)] = 1
    return rows


def entity_f1(predicted: Sequence[Sequence[str]], expected: Sequence[Sequence[str]]) -> float:
    """Micro-averaged F1 of exact entities (span and type) as the CoNLL script counts them."""
    truth, guess = ([list(tags) for tags in sentences] for sentences in (expected, predicted))
    return float(entity_f1_score(truth, guess, zero_division=0))


def squad_scores(predicted: Sequence[str], expected: Sequence[Sequence[str]]) -> tuple[float, float]:
    """Return (exact match, F1) in percent, defined as in the SQuAD v1.1 evaluation (arXiv 1606.05250, section 6.1)."""
    pairs = list(zip(predicted, expected, strict=True))
    exact = [max(float(_normal(guess) == _normal(truth)) for truth in truths) for guess, truths in pairs]
    f1 = [max(_overlap(guess, truth) for truth in truths) for guess, truths in pairs]
    return 100 * sum(exact) / len(exact), 100 * sum(f1) / len(f1)


def squad2_scores(
    predicted: Sequence[str], null_margins: Sequence[float], expected: Sequence[Sequence[str]], threshold: float
) -> dict[str, float]:
    """Return the scores of SQuAD v2.0's evaluation script (arXiv 1806.03822), under its names, in percent.

    `predicted` are the best spans. A question whose `null_margins` is above `threshold` gets no answer; `best_exact`
    and `best_f1` are what the best thresholds would give.
    """
    truths = [[text for text in texts if _normal(text)] or [""] for texts in expected]
    pairs = list(zip(predicted, truths, strict=True))
    exact = [max(float(_normal(guess) == _normal(text)) for text in texts) for guess, texts in pairs]
    f1 = [max(_overlap2(guess, text) for text in texts) for guess, texts in pairs]
    answerable = np.array([bool(texts) for texts in expected])
    silent = np.array(null_margins) > threshold
    scores: dict[str, float] = {}
    for name, values in (("exact", exact), ("f1", f1)):
        final = 100 * np.where(silent, ~answerable, np.array(values))
        scores[name] = float(final.mean())
        for group, members in (("HasAns", answerable), ("NoAns", ~answerable)):
            if members.any():
                scores[f"{group}_{name}"] = float(final[members].mean())
        best = best_threshold(values, [bool(guess) for guess in predicted], null_margins, answerable.tolist())
        scores[f"best_{name}"], scores[f"best_{name}_thresh"] = 100 * best[0] / len(values), best[1]
    return scores


def best_threshold(
    scores: Sequence[float], answered: Sequence[bool], null_margins: Sequence[float], answerable: Sequence[bool]
) -> tuple[float, float]:
    """Return the highest sum of scores that a threshold on the null margins gives, and that threshold.

    One more question is answered at each step, the surest first, as in the official script. The script's threshold is
    the margin of the last question answered; ours lies halfway to the next, which gives the same score and leaves room
    for questions that are a little less sure.
    """
    order = np.argsort(np.array(null_margins), kind="stable")
    margins = np.array(null_margins, np.float64)[order]
    between = [margins[0] - 1, *((margins[1:] + margins[:-1]) / 2), margins[-1] + 1]
    total = best = float(len(answerable) - sum(answerable))
    threshold = between[0]
    for number, above in zip(order, between[1:], strict=True):
        # A question without an answer was right so far; it is wrong once it is answered.
        total += scores[number] if answerable[number] else -float(answered[number])
        if total > best:
            best, threshold = total, above
    return best, float(threshold)


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


def _overlap2(guess: str, truth: str) -> float:
    """F1 as in v1.1, but nothing equals nothing."""
    if not _normal(guess) or not _normal(truth):
        return float(_normal(guess) == _normal(truth))
    return _overlap(guess, truth)
