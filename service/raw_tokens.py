"""Token ids that the caller made, and the logits that the model gives for them: the engine without our tokenizer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import InstanceOf, TypeAdapter

from service.errors import InvalidRequestError
from service.models import Model
from service.pipeline import TASKS
from service.schemas import Output, Strict
from service.task import Task
from service.windows import Encoded, Floats, Ints, Tokens, Window

Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class TokenRow:
    """One sequence, special tokens included: `ids` and `types` int32 [T]."""

    ids: Ints
    types: Ints


class NoParameters(Strict):
    """Logits have none."""


class Logits(Output):
    """What the head gives: `values` float32 [C] for text classification, [T, C] otherwise."""

    values: Any


def rows(model: Model, tensors: Mapping[str, Int64s], pointers: Mapping[str, str]) -> list[TokenRow]:
    """Return the sequences of the tensors `input_ids`, `attention_mask` and `token_type_ids`, [n, length] each.

    Without a mask every token is real, without types all are 0.

    Raises:
        InvalidRequestError: shapes that differ, a mask that is not ones and then zeros, a value that is no row of the
            model's embeddings.
    """
    ids = tensors["input_ids"]
    mask, types = tensors.get("attention_mask", np.ones_like(ids)), tensors.get("token_type_ids", np.zeros_like(ids))
    for name, tensor in tensors.items():
        if tensor.shape != ids.shape:
            message = f"it must be that of input_ids, {list(ids.shape)}"
            raise InvalidRequestError.at(f"{pointers[name]}/shape", message, value=list(tensor.shape))
    limits = model.embeddings
    # No sequences have a length, too: a mask of it is made below.
    if ids.shape[1] > limits.positions or (len(ids) and not ids.shape[1]):
        message = f"the length must be 1 to {limits.positions}, the positions that the model has"
        raise InvalidRequestError.at(
            f"{pointers['input_ids']}/shape", message, value=ids.shape[1], limit=limits.positions
        )
    _check_range(ids, "input_ids", limits.words, pointers)
    # A model without type embeddings never reads them; BERT's tokenizers write 0 and 1.
    _check_range(types, "token_type_ids", limits.types or 2, pointers)
    lengths = _lengths(mask, pointers.get("attention_mask", ""))
    narrow = ids.astype(np.int32), types.astype(np.int32)
    return [TokenRow(narrow[0][i, :length], narrow[1][i, :length]) for i, length in enumerate(lengths)]


def _check_range(tensor: Int64s, name: str, limit: int, pointers: Mapping[str, str]) -> None:
    wrong = np.argwhere((tensor < 0) | (tensor >= limit))
    if len(wrong):
        row, column = wrong[0].tolist()
        message = f"row {row}, column {column}: it must be 0 to {limit - 1} for this model"
        raise InvalidRequestError.at(f"{pointers[name]}/data", message, value=int(tensor[row, column]), limit=limit - 1)


def _lengths(mask: Int64s, pointer: str) -> list[int]:
    """Return how many ones each row of a mask begins with."""
    lengths = mask.sum(axis=1)
    expected = np.arange(mask.shape[1]) < lengths[:, None]
    wrong = np.flatnonzero((mask != expected).any(axis=1) | (lengths < 1))
    if len(wrong):
        message = f"row {wrong[0]} must be ones, at least one, and then zeros: pad on the right"
        raise InvalidRequestError.at(f"{pointer}/data", message, value=mask[wrong[0]].tolist())
    return [int(length) for length in lengths]


def encode(_: Model, row: TokenRow, __: NoParameters, ___: str) -> Encoded:
    """Return the sequence as the one window that it is."""
    count = len(row.ids)
    tokens = Tokens(row.ids, np.zeros((count, 2), np.int32), np.arange(count, dtype=np.int32))
    return Encoded(tokens, (Window(row.ids, row.types, 0, 0, count),))


def decode(_: Model, __: TokenRow, ___: Encoded, logits: Sequence[Floats], ____: NoParameters) -> list[Logits]:
    """Return the logits of the one window."""
    return [Logits(values=values) for values in logits]


def golden(entries: list[Logits]) -> Any:
    """Reduce entries to numbers; no manifest has golden examples of this kind."""
    return [entry.values.tolist() for entry in entries]


# One for each task, by its name: a request for logits is counted as one of its model's task.
RAW_TOKENS: Final[Mapping[str, Task[TokenRow, NoParameters, Logits]]] = MappingProxyType(
    {name: Task(name, TypeAdapter(InstanceOf[TokenRow]), NoParameters, encode, decode, golden) for name in TASKS}
)


def padded(entries: Sequence[Logits], shape: Sequence[int], labels: int, rows_are_tokens: bool) -> Floats:
    """Return [n, labels] for text classification, else [n, length, labels] with zeros where the mask has them."""
    result = np.zeros([*shape, labels] if rows_are_tokens else [shape[0], labels], np.float32)
    for row, entry in zip(result, entries, strict=True):
        row[: len(entry.values)] = entry.values
    return result
