"""Golden examples: inputs with the answers that the finished artifact gives, for a server to replay at load."""

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from compression import decode
from compression.checkpoint import model_labels
from compression.encode import Encoder, past_marks
from compression.evaluate import Predict
from compression.examples import QuestionExample, TaggedExample, TextExample
from compression.recipe import Golden, Task


def answer_golden(predict: Predict, encoder: Encoder, inputs: Sequence[Golden]) -> list[dict[str, Any]]:
    """Ask the model every golden input; return `{"input", "expected"}` pairs as docs/artifact.md defines them."""
    return [{"input": _input(encoder.task, golden), "expected": _answer(predict, encoder, golden)} for golden in inputs]


def _input(task: Task, golden: Golden) -> Any:
    if task.name == "question-answering":
        return {"question": golden.question, "context": golden.context}
    return {"text": golden.text, "text_pair": golden.text_pair} if task.pairs else golden.text


def _answer(predict: Predict, encoder: Encoder, golden: Golden) -> Any:
    task = encoder.task
    if task.name == "question-answering":
        question = QuestionExample("golden", golden.question, golden.context, ((0, ""),))
        windows = encoder.windows([question])
        best = decode.best_spans(windows, predict(windows), [question], task.max_answer_tokens)[0]
        silent = task.no_answer and best.null_margin > task.no_answer_threshold
        start, end = (0, 0) if silent else (best.start, best.end)
        return {"answer": golden.context[start:end], "start": start, "end": end}
    if task.name == "text-classification":
        windows = encoder.windows([TextExample(golden.text, () if task.multi_label else 0, golden.text_pair)])
        return {"label": task.labels[decode.best_classes(windows, predict(windows), 1)[0]]}
    pieces = split_words(encoder.tokenizer, golden.text)
    sentence = TaggedExample(tuple(golden.text[start:end] for start, end in pieces), ("O",) * len(pieces))
    windows = encoder.windows([sentence])
    tags = decode.best_tags(windows, predict(windows), [sentence], model_labels(task))[0]
    return group_entities(tags, pieces)


def split_words(tokenizer: Tokenizer, text: str) -> list[tuple[int, int]]:
    """Return the code points (first, end) of the pieces that the tokenizer never merges: words and punctuation."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    spans: dict[int, tuple[int, int]] = {}
    for piece, (start, end) in zip(encoding.word_ids, encoding.offsets, strict=True):
        assert piece is not None  # only special tokens belong to no piece
        spans[piece] = (min(start, spans[piece][0]), end) if piece in spans else (start, end)
    return [(start, past_marks(text, end)) for start, end in spans.values()]


def group_entities(tags: Sequence[str], pieces: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """Join IOB2 tags of pieces into entities; I- continues an entity of its own group only, else it starts one."""
    groups: list[dict[str, Any]] = []
    before = "O"
    for tag, (start, end) in zip(tags, pieces, strict=True):
        if tag.startswith("I-") and before[2:] == tag[2:]:
            groups[-1]["end"] = end
        elif tag != "O":
            groups.append({"entity_group": tag[2:], "start": start, "end": end})
        before = tag
    return groups
