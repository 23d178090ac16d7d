"""Text classification: a probability for each of the model's labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from service.errors import InvalidRequestError
from service.models import Model
from service.schemas import Label, Text, TextClassificationParameters
from service.task import Task
from service.windows import Encoded, Floats


def encode(model: Model, text: str, parameters: TextClassificationParameters, pointer: str) -> Encoded:
    """Return the text's tokens and its windows.

    Raises:
        InvalidRequestError: a text without a token, or longer than one window where `long_inputs` is "refuse".
    """
    tokens = model.windows.tokenizer(text)
    if not len(tokens):
        raise InvalidRequestError.at(pointer, "the text has no words", value=text)
    encoded = model.windows.single(tokens)
    if len(encoded.windows) > 1 and parameters.long_inputs == "refuse":
        limit = model.windows.length - 2
        raise InvalidRequestError.at(
            pointer,
            f"the text has {len(tokens)} tokens, one window holds {limit}, and long_inputs is 'refuse'; "
            "shorten it or use 'average'",
            value=len(tokens),
            limit=limit,
        )
    return encoded


def decode(
    model: Model, _: str, encoded: Encoded, logits: Sequence[Floats], parameters: TextClassificationParameters
) -> list[Label]:
    """Return labels, best first, from logits, [C] per window: softmax of their mean, weighted by windows' tokens.

    Scores of a multi-label model are sigmoids: each is the probability that its label holds, whatever the others do.
    """
    weights = [window.end - window.start for window in encoded.windows]
    mean = np.average(np.array(logits, np.float64), axis=0, weights=weights)
    if model.multi_label:
        scores = np.exp(-np.logaddexp(0, -mean))  # 1 / (1 + exp(-x)) without overflow
    else:
        exponentials = np.exp(mean - mean.max())
        scores = exponentials / exponentials.sum()
    order = np.argsort(-scores, kind="stable")[: parameters.top_k]
    return [Label(label=model.labels[i], score=float(scores[i])) for i in order]


def golden(entries: list[Label]) -> Any:
    """Reduce entries to what a manifest's golden example expects."""
    return {"label": entries[0].label}


TEXT_CLASSIFICATION = Task(
    "text-classification", TypeAdapter(Text), TextClassificationParameters, encode, decode, golden
)
