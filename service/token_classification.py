"""Token classification (NER): the entities in a text, from IOB2 tags of its words."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from service.errors import InvalidRequestError, nearest
from service.models import Model
from service.offsets import in_unit
from service.schemas import Entity, Text, TokenClassificationParameters
from service.task import Task
from service.windows import Encoded, Floats, merged, with_marks

Scores = NDArray[np.float64]

# Tag, probability, first code point, last + 1.
Word = tuple[str, float, int, int]


def encode(model: Model, text: str, parameters: TokenClassificationParameters, _: str) -> Encoded:
    """Return the text's tokens and its windows; a text without a token has none, and no entities.

    Raises:
        InvalidRequestError: `ignore_labels` names a group that the model does not have, or no progress with `stride`.
        TooLargeError: too many windows.
    """
    groups = sorted({_group(tag) for tag in model.labels})
    for place, name in enumerate(parameters.ignore_labels):
        if name not in groups:
            where = f"/parameters/ignore_labels/{place}"
            raise InvalidRequestError.at(where, f"the model has no such group{nearest(name, groups)}", value=name)
    return model.windows.single(model.windows.tokenizer(text), parameters.stride)


def decode(
    model: Model, text: str, encoded: Encoded, logits: Sequence[Floats], parameters: TokenClassificationParameters
) -> list[Entity]:
    """Return the entities in the order of the text, from logits, [T, C] per window.

    A word is what lies between spaces and punctuation; its tag comes from its tokens as `aggregation` says. B- starts
    an entity, I- continues one of its own group and starts one elsewhere. A group's score is the mean of its words'.
    For "simple" each token is a word of its own; for "none" an entity, too.
    """
    if not encoded.windows:
        return []
    rows = merged(encoded, logits).astype(np.float64)
    exponentials = np.exp(rows - rows.max(axis=1, keepdims=True))
    words = _words(model, text, encoded, exponentials / exponentials.sum(axis=1, keepdims=True), parameters.aggregation)
    alone, ignored = parameters.aggregation == "none", frozenset(parameters.ignore_labels)
    found = [
        _entity(text, group[0][0] if alone else _group(group[0][0]), group)
        for group in ([[word] for word in words] if alone else _groups(words))
        if _group(group[0][0]) not in ignored
    ]
    return in_unit(parameters.offset_unit, text, found)


def _words(model: Model, text: str, encoded: Encoded, scores: Scores, aggregation: str) -> list[Word]:
    by_token = aggregation in ("none", "simple")
    numbers = np.arange(len(encoded.tokens)) if by_token else encoded.tokens.words
    edges = [0, *(np.flatnonzero(numbers[1:] != numbers[:-1]) + 1).tolist(), len(numbers)]
    result = []
    for first, end in pairwise(edges):
        row = _word_scores(scores[first:end], aggregation)
        tag = int(row.argmax())
        start, stop = int(encoded.tokens.spans[first, 0]), with_marks(text, int(encoded.tokens.spans[end - 1, 1]))
        result.append((model.labels[tag], float(row[tag]), start, stop))
    return result


def _word_scores(tokens: Scores, aggregation: str) -> Scores:
    """Reduce the probabilities of a word's tokens, [n, C], to the word's, [C]."""
    if aggregation == "average":
        return np.asarray(tokens.mean(axis=0))
    surest = int(tokens.max(axis=1).argmax()) if aggregation == "max" else 0
    return np.asarray(tokens[surest])


def _groups(words: Sequence[Word]) -> list[list[Word]]:
    groups: list[list[Word]] = []
    for word in words:
        continues = groups and not word[0].startswith("B-") and _group(word[0]) == _group(groups[-1][-1][0])
        if continues:
            groups[-1].append(word)
        else:
            groups.append([word])
    return groups


def _group(tag: str) -> str:
    return tag.split("-", 1)[-1]


def _entity(text: str, name: str, words: list[Word]) -> Entity:
    start, end = words[0][2], words[-1][3]
    score = sum(word[1] for word in words) / len(words)
    return Entity(entity_group=name, score=score, word=text[start:end], start=start, end=end)


def golden(entries: list[Entity]) -> Any:
    """Reduce entries to what a manifest's golden example expects."""
    return [entry.model_dump(include={"entity_group", "start", "end"}) for entry in entries]


TOKEN_CLASSIFICATION = Task(
    "token-classification", TypeAdapter(Text), TokenClassificationParameters, encode, decode, golden
)
