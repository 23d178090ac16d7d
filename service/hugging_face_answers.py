"""What transformers' pipelines make of logits: the spans of question answering, the entities of token classification.

Question answering is that of transformers 4.57 (later versions have none), token classification that of 5.23. Both are
written down here after their published behaviour, defects that lose nothing included, so that a client gets the values
it is used to; `service.question_answering` and `service.token_classification` are how we would have it.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.hugging_face_schemas import GroupedEntity, Span, TokenEntity
from service.models import Model
from service.windows import Encoded, Floats, Window, merged

Scores = NDArray[np.float64]


def spans(
    context: str,
    encoded: Encoded,
    logits: Sequence[Floats],
    *,
    top_k: int,
    longest: int,
    align_to_words: bool,
    no_answer: bool,
) -> list[Span]:
    """Return up to `top_k` answers, best first, from start and end logits, [T, 2] per window.

    Each window's start and end logits are normalised alone, over its part of the context and [CLS]; a span of up to
    `longest` tokens has the product of its two probabilities. Answers that differ in nothing but upper case are one
    answer, where the first lay, with the sum of their scores. No answer has the least of the windows' [CLS].

    Spans that the pipeline makes up where it runs out of real ones, with a score of 0, are left out.
    """
    scores: dict[str, float] = {}
    places: dict[str, tuple[int, int]] = {}
    null = np.inf
    for window, values in zip(encoded.windows, logits, strict=True):
        cls, worth = _probabilities(window, values, longest)
        null = min(null, cls)
        # Some become the same when they grow to whole words.
        for first, last in _best(worth, 2 * top_k + 10 if align_to_words else top_k):
            start, end = _characters(encoded, window, first, last, align_to_words)
            text = context[start:end].lower()
            scores[text] = scores.get(text, 0.0) + worth[first, last]
            places.setdefault(text, (start, end))
    answers = [Span(score=scores[text], start=a, end=b, answer=context[a:b]) for text, (a, b) in places.items()]
    if no_answer:
        answers.append(Span(score=null, start=0, end=0, answer=""))
    return sorted(answers, key=lambda answer: answer.score, reverse=True)[:top_k]


def _probabilities(window: Window, values: Floats, longest: int) -> tuple[float, Scores]:
    """Return [CLS]'s probability to be start and end, and [n, n]: that a span goes from one token to another."""
    rows = np.concatenate([values[:1], window.content(values)]).astype(np.float64)
    rows = np.exp(rows - rows.max(axis=0))
    rows /= rows.sum(axis=0)
    spans_worth = np.triu(np.outer(rows[1:, 0], rows[1:, 1]))
    return float(rows[0, 0] * rows[0, 1]), np.tril(spans_worth, min(longest, len(rows)) - 1)


def _best(worth: Scores, count: int) -> Iterator[tuple[int, int]]:
    """Yield the places of the `count` highest entries above 0, highest first."""
    flat = worth.ravel()
    found = np.argpartition(-flat, count)[:count] if count < flat.size else np.arange(flat.size)
    for place in found[np.argsort(-flat[found], kind="stable")]:
        if flat[place] > 0:
            yield divmod(int(place), len(worth))


def _characters(encoded: Encoded, window: Window, first: int, last: int, align: bool) -> tuple[int, int]:
    """Return the code points of tokens of a window; aligned: of their words, as far as these lie in the window."""
    first, last = window.start + first, window.start + last
    if align:
        words = encoded.tokens.words
        first = max(window.start, int(np.searchsorted(words, words[first], "left")))
        last = min(window.end, int(np.searchsorted(words, words[last], "right"))) - 1
    return int(encoded.tokens.spans[first, 0]), int(encoded.tokens.spans[last, 1])


@dataclass(frozen=True)
class _Piece:
    """Tokens that are judged as one: what they are called, their tag, its score, and where they lie."""

    word: str
    tag: str
    score: float
    start: int
    end: int


def entities(
    model: Model,
    text: str,
    encoded: Encoded,
    logits: Sequence[Floats],
    *,
    strategy: str,
    ignored: Collection[str],
    by_window: bool,
) -> list[TokenEntity] | list[GroupedEntity]:
    """Return the entities of a text, from logits, [T, C] per window.

    `by_window`: those of each window, and of entities that overlap the longest, then surest; as the pipeline does with
    a stride. Otherwise those of the whole text, each token judged in the window where it sees most; the pipeline
    would have cut the text.
    """
    if by_window:
        parts = [(w.start, w.end, w.content(values)) for w, values in zip(encoded.windows, logits, strict=True)]
    else:
        parts = [(0, len(encoded.tokens), merged(encoded, logits))] if encoded.windows else []
    if strategy == "none":
        return [entity for part in parts for entity in _tokens(model, text, encoded, *part, ignored)]
    found = [
        entity
        for start, end, rows in parts
        for entity in _grouped(model, _pieces(model, text, encoded, start, end, _softmax(rows), strategy))
        if entity.entity_group not in ignored
    ]
    return _without_overlaps(found) if len(parts) > 1 else found


def _softmax(rows: Floats) -> Scores:
    exponentials = np.exp(rows.astype(np.float64) - rows.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def _tokens(
    model: Model, text: str, encoded: Encoded, start: int, end: int, rows: Floats, ignored: Collection[str]
) -> Iterator[TokenEntity]:
    pieces = _pieces(model, text, encoded, start, end, _softmax(rows), "none")
    for index, piece in enumerate(pieces, start=1):
        if piece.tag not in ignored:
            yield TokenEntity(
                entity=piece.tag, score=piece.score, index=index, word=piece.word, start=piece.start, end=piece.end
            )


def _pieces(
    model: Model, text: str, encoded: Encoded, start: int, end: int, scores: Scores, strategy: str
) -> list[_Piece]:
    """Return tokens `start` to `end`, with `scores` [end - start, C], one by one or joined to words."""
    names, continues = _spelled(model, text, encoded, start, end)
    by_token = strategy in ("none", "simple")
    edges = [i for i in range(end - start) if i == 0 or by_token or not continues[i]]
    pieces = []
    for first, after in zip(edges, [*edges[1:], end - start], strict=True):
        row = _word_scores(scores[first:after], strategy)
        tag = int(row.argmax())
        word = names[first] if by_token else model.windows.tokenizer.joined(names[first:after])
        begin, stop = encoded.tokens.spans[start + first, 0], encoded.tokens.spans[start + after - 1, 1]
        pieces.append(_Piece(word, model.labels[tag], float(row[tag]), int(begin), int(stop)))
    return pieces


def _spelled(model: Model, text: str, encoded: Encoded, start: int, end: int) -> tuple[list[str], list[bool]]:
    """Return how tokens are spelled, and whether each continues a word: where token and text differ in length."""
    tokenizer = model.windows.tokenizer
    ids, places = encoded.tokens.ids[start:end], encoded.tokens.spans[start:end].tolist()
    names, continues = [], []
    for number, piece, (first, last) in zip(ids, tokenizer.pieces(ids), places, strict=True):
        known = int(number) != tokenizer.unknown
        names.append(piece if known else text[first:last])
        continues.append(known and len(piece) != last - first)
    return names, continues


def _word_scores(tokens: Scores, strategy: str) -> Scores:
    if strategy == "average":
        return np.asarray(tokens.mean(axis=0))
    return np.asarray(tokens[int(tokens.max(axis=1).argmax()) if strategy == "max" else 0])


def _grouped(model: Model, pieces: Sequence[_Piece]) -> Iterator[GroupedEntity]:
    """Join neighbours of one tag; B- begins anew."""
    groups: list[list[_Piece]] = []
    for piece in pieces:
        begins, tag = _tag(piece.tag)
        if groups and not begins and tag == _tag(groups[-1][-1].tag)[1]:
            groups[-1].append(piece)
        else:
            groups.append([piece])
    for group in groups:
        yield GroupedEntity(
            entity_group=group[0].tag.split("-", 1)[-1],
            score=sum(piece.score for piece in group) / len(group),
            word=model.windows.tokenizer.joined([piece.word for piece in group]),
            start=group[0].start,
            end=group[-1].end,
        )


def _tag(name: str) -> tuple[bool, str]:
    return name.startswith("B-"), name[2:] if name.startswith(("B-", "I-")) else name


def _without_overlaps(found: Sequence[GroupedEntity]) -> list[GroupedEntity]:
    """Return entities by their start; of those that overlap the one kept so far the longer, then the surer one."""
    kept: list[GroupedEntity] = []
    for entity in sorted(found, key=lambda entity: entity.start):
        if not kept or entity.start >= kept[-1].end:
            kept.append(entity)
        elif (entity.end - entity.start, entity.score) > (kept[-1].end - kept[-1].start, kept[-1].score):
            kept[-1] = entity
    return kept
