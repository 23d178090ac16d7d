"""Text classification: a probability for each of the model's labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from service.errors import InvalidRequestError
from service.models import Model
from service.schemas import Label, TextClassificationParameters, TextOrPair, TextPair
from service.task import Task
from service.windows import Encoded, Floats, Tokens

Scores = NDArray[np.float64]


def encode(model: Model, item: str | TextPair, parameters: TextClassificationParameters, pointer: str) -> Encoded:
    """Return the windows of a text, or of a pair of texts: then with the tokens of the longer one, which is cut.

    Raises:
        InvalidRequestError: a pair for a model of single texts or the reverse; a text without a token; longer than one
            window where `long_inputs` is "refuse"; a pair of two long texts. TooLargeError: too many windows.
    """
    if isinstance(item, TextPair) != model.pairs:
        wanted = '{"text": ..., "text_pair": ...}' if model.pairs else "a text, not a pair"
        raise InvalidRequestError.at(
            pointer, f"the model reads {'pairs' if model.pairs else 'single texts'}: send {wanted}"
        )
    if isinstance(item, TextPair):
        first, second = (_tokens(model, getattr(item, name), f"{pointer}/{name}") for name in TextPair.model_fields)
        count, limit = len(first) + len(second), model.windows.length - 3
        _check_length(count, limit, parameters, pointer)
        return model.windows.both(first, second, pointer)
    tokens = _tokens(model, item, pointer)
    _check_length(len(tokens), model.windows.length - 2, parameters, pointer)
    return model.windows.single(tokens)


def _tokens(model: Model, text: str, pointer: str) -> Tokens:
    tokens = model.windows.tokenizer(text)
    if not len(tokens):
        raise InvalidRequestError.at(pointer, "the text has no words", value=text)
    return tokens


def _check_length(count: int, limit: int, parameters: TextClassificationParameters, pointer: str) -> None:
    if count > limit and parameters.long_inputs == "refuse":
        raise InvalidRequestError.at(
            pointer,
            f"the text has {count} tokens, one window holds {limit}, and long_inputs is 'refuse'; "
            "shorten it or use 'average'",
            value=count,
            limit=limit,
        )


def decode(
    model: Model,
    _: str | TextPair,
    encoded: Encoded,
    logits: Sequence[Floats],
    parameters: TextClassificationParameters,
) -> list[Label]:
    """Return labels, best first, from logits, [C] per window: a function of their mean, weighted by windows' tokens.

    Unless `function` names one it is softmax, or sigmoid where the model has one label, or several that each hold by
    themselves (as transformers' pipeline has it).
    """
    # As np.average computes it, in a third of its time, which was a twentieth of all that is done for a short text.
    weights = np.array([[window.end - window.start] for window in encoded.windows], np.float64)
    mean = (np.array(logits, np.float64) * weights).sum(axis=0) / weights.sum()
    by_itself = model.multi_label or len(model.labels) == 1
    scores = _scores(mean, parameters.function or ("sigmoid" if by_itself else "softmax"))
    order = np.argsort(-scores, kind="stable")[: parameters.top_k]
    return [Label(label=model.labels[i], score=float(scores[i])) for i in order]


def _scores(logits: Scores, function: str) -> Scores:
    if function == "none":
        return logits
    if function == "sigmoid":
        return np.asarray(np.exp(-np.logaddexp(0, -logits)))  # 1 / (1 + exp(-x)) without overflow
    exponentials = np.exp(logits - logits.max())
    return np.asarray(exponentials / exponentials.sum())


def golden(entries: list[Label]) -> Any:
    """Reduce entries to what a manifest's golden example expects."""
    return {"label": entries[0].label}


ITEM: TypeAdapter[str | TextPair] = TypeAdapter(TextOrPair)
TEXT_CLASSIFICATION = Task("text-classification", ITEM, TextClassificationParameters, encode, decode, golden)
