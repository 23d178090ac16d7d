"""How good a model is: predictions, whoever makes them, judged the same way."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from compression import decode, metrics, processes
from compression.batches import plan_evaluation
from compression.checkpoint import model_labels
from compression.encode import Window
from compression.examples import Example, QuestionExample, TaggedExample, TextExample
from compression.objective import collate, output_of
from compression.recipe import Task

# Logits of some windows: [C] each for text classification, [T, C] each otherwise.
Predict = Callable[[Sequence[Window]], list[decode.Floats]]


@dataclass(frozen=True)
class Report:
    """Scores by metric name, and one prediction an example (class, set of labels, tags, or `decode.Span`)."""

    scores: dict[str, float]
    predictions: list[object]


def torch_predictor(model: PreTrainedModel) -> Predict:
    """Predict with a torch model, as it is (fake quantization included where it is switched on)."""

    @torch.no_grad()
    def predict(windows: Sequence[Window]) -> list[decode.Floats]:
        model.train(False)
        logits = output_of(model, collate(windows, model.device)).logits.float().cpu().numpy()
        if logits.ndim == 2:
            return list(logits)
        return [row[: len(window.ids)] for row, window in zip(logits, windows, strict=True)]

    return predict


def evaluate(
    predict: Predict,
    windows: Sequence[Window],
    examples: Sequence[Example],
    task: Task,
    *,
    name: str,
    batch_size: int | None = None,
) -> Report:
    """Predict every window and score the examples; `name` labels the progress bar."""
    logits: list[decode.Floats] = [np.empty(0, np.float32)] * len(windows)
    batches = plan_evaluation([len(w.ids) for w in windows], batch_size or processes.windows_at_once())
    for batch in tqdm(batches, desc=name, mininterval=1.0):
        for number, values in zip(batch, predict([windows[i] for i in batch]), strict=True):
            logits[number] = values
    return score(windows, logits, examples, task)


def score(
    windows: Sequence[Window], logits: Sequence[decode.Floats], examples: Sequence[Example], task: Task
) -> Report:
    """Turn logits into predictions and metrics."""
    if task.name == "text-classification":
        return _score_texts(windows, logits, examples, task)
    if task.name == "token-classification":
        tags = decode.best_tags(windows, logits, examples, model_labels(task))
        truth = [example.tags for example in examples if isinstance(example, TaggedExample)]
        return Report({"entity_f1": metrics.entity_f1(tags, truth)}, list(tags))
    spans = decode.best_spans(windows, logits, examples, task.max_answer_tokens)
    scores = _score_answers(spans, examples, task)
    return Report(scores, list(spans))


def _score_texts(
    windows: Sequence[Window], logits: Sequence[decode.Floats], examples: Sequence[Example], task: Task
) -> Report:
    expected = [example.label for example in examples if isinstance(example, TextExample)]
    if task.multi_label:
        sets = decode.label_sets(windows, logits, len(examples))
        truth = [label for label in expected if isinstance(label, tuple)]
        return Report(metrics.label_set_scores(sets, truth, len(task.labels)), list(sets))
    classes = decode.best_classes(windows, logits, len(examples))
    right = [label for label in expected if isinstance(label, int)]
    return Report(metrics.class_scores(classes, right, len(task.labels)), list(classes))


def _score_answers(spans: Sequence[decode.Span], examples: Sequence[Example], task: Task) -> dict[str, float]:
    questions = [example for example in examples if isinstance(example, QuestionExample)]
    guesses = [question.context[span.start : span.end] for question, span in zip(questions, spans, strict=True)]
    truths = [[text for _, text in question.answers] for question in questions]
    if task.no_answer:
        margins = [span.null_margin for span in spans]
        return metrics.squad2_scores(guesses, margins, truths, task.no_answer_threshold)
    exact, f1 = metrics.squad_scores(guesses, truths)
    return {"exact_match": exact, "f1": f1}
