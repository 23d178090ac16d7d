"""How sure answers are: one temperature for all logits, fitted on examples that were not trained on.

Temperature scaling: Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599, section 4.2. No answer
changes. Networks that were trained long, and distilled ones, say 0.99 where they are right nine times in ten.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from compression.decode import Floats
from compression.encode import IGNORED, Window
from compression.examples import tags_of
from compression.recipe import Task

# A model that is right on all of a small set would be made as sure as we let it be; one beyond the other is broken.
LOWEST, HIGHEST = 0.5, 10.0
# So many windows tell one number well enough.
WINDOWS = 2000

# Logits [C] of a decision, and the number of the right one.
Case = tuple[Floats, int]


def fit_temperature(windows: Sequence[Window], logits: Sequence[Floats], task: Task) -> float:
    """Return the temperature with the least mean negative log-likelihood of what is right; 1.0 where nothing tells.

    Divide all logits by it. Windows hold targets as in training; a word counts where it is or is taken for a part of an
    entity: the others are most words, and easy. For question answering it is 1.0: the score of an answer is that of a
    span among all spans, and the temperature that fits starts and ends made it worse (SQuAD dev: expected calibration
    error 15.1 points instead of 10.3).
    """
    found = [case for window, values in zip(windows, logits, strict=True) for case in _cases(window, values, task)]
    if not found:
        return 1.0
    padded = np.full((len(found), max(len(values) for values, _ in found)), -np.inf)
    for row, (values, _) in enumerate(found):
        padded[row, : len(values)] = values
    right = padded[np.arange(len(found)), [target for _, target in found]]
    highest = padded.max(axis=1)

    def loss(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        sums = np.exp(scale * (padded - highest[:, None])).sum(axis=1)
        return float((np.log(sums) + scale * (highest - right)).mean())

    best = minimize_scalar(loss, bounds=(np.log(LOWEST), np.log(HIGHEST)), method="bounded", options={"xatol": 1e-4})
    # Few digits: the last ones are the optimizer's, and other machines' sums end in others.
    return round(float(np.exp(best.x)), 2)


def _cases(window: Window, logits: Floats, task: Task) -> Iterator[Case]:
    targets: NDArray[np.float32] | NDArray[np.int32] = window.targets
    if task.name == "question-answering":
        return
    if task.name == "token-classification":
        outside = tags_of(task.labels).index("O")
        for values, target in zip(logits, targets.tolist(), strict=True):
            if target != IGNORED and (target != outside or int(values.argmax()) != outside):
                yield values, int(target)
    elif task.multi_label:  # a label's sigmoid is the softmax of its logit beside 0
        for value, target in zip(logits, targets, strict=True):
            yield np.array([0.0, value], np.float32), int(target)
    else:
        yield logits, int(targets[0])
