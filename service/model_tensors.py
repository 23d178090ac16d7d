"""What a model takes and gives as tensors: inputs to items of a task, answers to outputs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from pydantic_core import to_json

from service.errors import InvalidRequestError, nearest
from service.models import Model
from service.pipeline import TASKS
from service.raw_tokens import RAW_TOKENS, padded, rows
from service.schemas import Response
from service.task import Task
from service.tensors import InputTensor, Tensor, integers, texts
from service.translation import Place

# What a model takes, by task: texts, one tensor per part of an input; "text_pair" is for models that read pairs.
TEXT_INPUTS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "question-answering": ("question", "context"),
        "text-classification": ("text",),
        "token-classification": ("text",),
    }
)
PAIR: Final = "text_pair"
TOKEN_INPUTS: Final = ("input_ids", "attention_mask", "token_type_ids")
# What it gives for texts: `output` is each input's whole answer as JSON; the others are a column of it: of the best
# entry per input [n], or for entities of all of them [m], `row` being the number of the input.
TEXT_OUTPUTS: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "question-answering": {"output": "BYTES", "answer": "BYTES", "score": "FP32", "start": "INT64", "end": "INT64"},
        "text-classification": {"output": "BYTES", "label": "BYTES", "score": "FP32"},
        "token-classification": {
            **{"output": "BYTES", "row": "INT64", "entity_group": "BYTES", "word": "BYTES"},
            **{"score": "FP32", "start": "INT64", "end": "INT64"},
        },
    }
)
DTYPES: Final[Mapping[str, type]] = MappingProxyType({"FP32": np.float32, "INT64": np.int64})
# The same types in Triton's model configuration (github.com/triton-inference-server/common, model_config.proto).
CONFIGURED: Final[Mapping[str, str]] = MappingProxyType(
    {"BYTES": "TYPE_STRING", "FP32": "TYPE_FP32", "INT64": "TYPE_INT64"}
)


@dataclass(frozen=True)
class Work:
    """What a request asks for: items of a task, and its outputs from the answer, by name."""

    task: Task[Any, Any, Any]
    items: Sequence[object]
    outputs: Mapping[str, Callable[[Response[Any]], Tensor]]
    place: Place


def described(model: Model) -> dict[str, list[dict[str, object]]]:
    """Return name, datatype and shape of all tensors of a model, those of texts and those of raw tokens."""

    def tensor(name: str, datatype: str, *shape: int) -> dict[str, object]:
        return {"name": name, "datatype": datatype, "shape": list(shape)}

    texts_taken = (*TEXT_INPUTS[model.task], *((PAIR,) if model.pairs else ()))
    inputs = [tensor(name, "BYTES", -1) for name in texts_taken]
    outputs = [tensor(name, datatype, -1) for name, datatype in TEXT_OUTPUTS[model.task].items()]
    logits = (-1, -1, len(model.labels)) if model.rows_are_tokens else (-1, len(model.labels))
    return {
        "inputs": inputs + [tensor(name, "INT64", -1, -1) for name in TOKEN_INPUTS],
        "outputs": [
            *outputs,
            tensor("logits", "FP32", *logits),
            *(tensor(name, "FP32", -1, -1) for name in _logit_columns(model)),
        ],
    }


def configured(model: Model) -> dict[str, list[dict[str, object]]]:
    """Return the same in the words of Triton's model configuration; an input is optional, the others may be sent."""
    tensors = described(model)

    def parts(kind: str) -> list[dict[str, object]]:
        return [
            {"name": tensor["name"], "data_type": CONFIGURED[str(tensor["datatype"])], "dims": tensor["shape"]}
            for tensor in tensors[kind]
        ]

    return {"input": [part | {"optional": True} for part in parts("inputs")], "output": parts("outputs")}


def _logit_columns(model: Model) -> list[str]:
    """Name the outputs that hold one label's logits, as exporters to ONNX name them."""
    return [f"{label}_logits" for label in model.labels] if model.task == "question-answering" else []


def read_inputs(
    model: Model,
    inputs: Sequence[InputTensor],
    parts: Sequence[bytes | None],
    check_count: Callable[[int, str], None],
) -> Work:
    """Read the input tensors, which are those of texts or those of raw tokens; `parts` are their bytes, if binary.

    `check_count` is asked about the number of inputs, and where it stands, before any of them is read.

    Raises:
        InvalidRequestError: another tensor, none that must be there, or one that is not as it must be.
        TooLargeError: `check_count` says so.
    """
    pointers: dict[str, str] = {}
    for i, tensor in enumerate(inputs):
        if tensor.name in pointers:
            raise InvalidRequestError.at(f"/inputs/{i}/name", "there is another tensor of that name", value=tensor.name)
        pointers[tensor.name] = f"/inputs/{i}"
    raw = not pointers.keys().isdisjoint(TOKEN_INPUTS)
    needed = TOKEN_INPUTS[:1] if raw else TEXT_INPUTS[model.task]
    optional = TOKEN_INPUTS[1:] if raw else (PAIR,) if model.task == "text-classification" else ()
    for name, pointer in pointers.items():
        if name not in (*needed, *optional):
            hint = nearest(name, [*needed, *optional] if raw else [*needed, *optional, *TOKEN_INPUTS])
            what = "beside token ids" if raw else f"of a model for {model.task}"
            raise InvalidRequestError.at(f"{pointer}/name", f"there is no such input {what}{hint}", value=name)
    for name in needed:
        if name not in pointers:
            raise InvalidRequestError.at("/inputs", f"the tensor '{name}' is missing", value=list(pointers))
    for tensor in inputs:
        check_count(tensor.shape[0] if tensor.shape else 0, f"{pointers[tensor.name]}/shape")
    if raw:
        arrays = {t.name: integers(t, pointers[t.name], part) for t, part in zip(inputs, parts, strict=True)}
        return _raw(model, arrays, pointers)
    columns = {t.name: texts(t, pointers[t.name], part) for t, part in zip(inputs, parts, strict=True)}
    return _texts(model, columns, pointers)


def _texts(model: Model, columns: Mapping[str, list[str]], pointers: Mapping[str, str]) -> Work:
    first = next(iter(columns))
    for name, column in columns.items():
        if len(column) != len(columns[first]):
            message = f"it must hold as many texts as '{first}', {len(columns[first])}"
            raise InvalidRequestError.at(f"{pointers[name]}/shape", message, value=len(column))
    if len(columns) == 1:
        items: list[object] = list(columns[first])
    else:
        items = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def place(pointer: str) -> str:
        """Move /inputs/{row}/{name} to the element of the tensor."""
        match pointer.split("/")[1:]:
            case ["inputs"]:
                return f"{pointers[first]}/shape"
            case ["inputs", row, *rest]:
                return f"{pointers[rest[0] if rest and rest[0] in pointers else first]}/data/{row}"
        return pointer

    return Work(TASKS[model.task], items, _text_outputs(model.task), place)


def _text_outputs(task: str) -> dict[str, Callable[[Response[Any]], Tensor]]:
    return {name: partial(_text_output, task, name) for name in TEXT_OUTPUTS[task]}


def _text_output(task: str, name: str, response: Response[Any]) -> Tensor:
    if name == "output":
        return Tensor(name, [to_json(entries).decode() for entries in response.results])
    entities = task == "token-classification"
    chosen = [
        (row, entry) for row, entries in enumerate(response.results) for entry in (entries if entities else entries[:1])
    ]
    values: list[Any] = [row if name == "row" else getattr(entry, name) for row, entry in chosen]
    datatype = TEXT_OUTPUTS[task][name]
    return Tensor(name, values if datatype == "BYTES" else np.array(values, DTYPES[datatype]))


def _raw(model: Model, arrays: Mapping[str, Any], pointers: Mapping[str, str]) -> Work:
    sequences = rows(model, arrays, pointers)
    shape = arrays["input_ids"].shape

    def logits(name: str, column: int | None, response: Response[Any]) -> Tensor:
        entries = [entry for (entry,) in response.results]
        values = padded(entries, shape, len(model.labels), model.rows_are_tokens)
        return Tensor(name, values if column is None else values[..., column])

    outputs = {"logits": partial(logits, "logits", None)}
    outputs |= {name: partial(logits, name, column) for column, name in enumerate(_logit_columns(model))}
    where = {"/inputs": f"{pointers['input_ids']}/shape"}
    return Work(RAW_TOKENS[model.task], sequences, outputs, lambda pointer: where.get(pointer, pointer))
