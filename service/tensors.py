"""Tensors of the Open Inference Protocol v2 on the wire: JSON or binary, to texts and integers and back.

The JSON is github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md; the binary form is
Triton's binary tensor data extension (docs.nvidia.com, Triton, protocol/extension_binary_data): behind the JSON, in the
order of the tensors, little-endian and row-major; a text is its length in 4 bytes, then UTF-8.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Annotated, Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, FailFast, Field
from pydantic_core import to_json

from service.errors import InvalidRequestError, MalformedBodyError, shown
from service.schemas import Output, Strict, Text

Int64s = NDArray[np.int64]

INTEGERS: Final[Mapping[str, str]] = {"INT64": "<i8", "INT32": "<i4"}
LENGTH: Final = struct.Struct("<I")
# Inputs, or outputs, that a request may name: more than any model has, and few to check.
MOST_TENSORS: Final = 16

ParameterValues = Annotated[
    dict[str, Any] | None, Field(json_schema_extra={"additionalProperties": {"type": ["string", "number", "boolean"]}})
]


class InputTensor(Strict):
    """An input: its elements are `data` (nested or flat, row-major), or `binary_data_size` bytes behind the JSON."""

    name: Annotated[str, Field(examples=["text"])]
    shape: Annotated[list[Annotated[int, Field(ge=0, le=2**63 - 1)]], FailFast(), Field(examples=[[1]])]
    datatype: Annotated[str, Field(examples=["BYTES"])]
    parameters: ParameterValues = None
    data: Annotated[list[Any] | None, Field(examples=[["A quiet triumph."]])] = None


class OutputRequest(Strict):
    """An output that the client wants; `parameters.binary_data` says in which form."""

    name: str
    parameters: ParameterValues = None


class InferRequest(Strict):
    """The body of an inference request; no `outputs` are all of them."""

    model_config = ConfigDict(title="InferRequest")

    id: Text | None = None
    parameters: ParameterValues = None
    inputs: Annotated[list[InputTensor], FailFast(), Field(max_length=MOST_TENSORS)]
    outputs: Annotated[list[OutputRequest] | None, FailFast(), Field(max_length=MOST_TENSORS)] = None


class OutputTensor(Output):
    """An output in JSON; `data` is flat."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any] | None = None
    parameters: dict[str, int] | None = None


class InferResponse(Output):
    """The answer; `parameters` say how many tokens were read in how many windows."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: dict[str, int]
    outputs: list[OutputTensor]


@dataclass(frozen=True)
class Tensor:
    """An output before it is written: texts (BYTES), or an array of float32 (FP32) or int64 (INT64)."""

    name: str
    values: Sequence[str] | NDArray[np.generic]

    @property
    def shape(self) -> list[int]:
        """Return the sizes of the dimensions."""
        return list(self.values.shape) if isinstance(self.values, np.ndarray) else [len(self.values)]

    @property
    def datatype(self) -> str:
        """Return the protocol's name of the element type."""
        if not isinstance(self.values, np.ndarray):
            return "BYTES"
        return {"f": "FP32", "i": "INT64"}[self.values.dtype.kind]

    def as_json(self) -> list[Any]:
        """Return the elements, flat."""
        return self.values.ravel().tolist() if isinstance(self.values, np.ndarray) else list(self.values)

    def as_bytes(self) -> bytes:
        """Return the elements in binary."""
        if isinstance(self.values, np.ndarray):
            return self.values.astype({"f": "<f4", "i": "<i8"}[self.values.dtype.kind], copy=False).tobytes()
        encoded = [text.encode() for text in self.values]
        return b"".join(chain.from_iterable((LENGTH.pack(len(text)), text) for text in encoded))


def split(body: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    """Cut a body into its JSON and the binary tensors behind it, by the header Inference-Header-Content-Length.

    Raises:
        MalformedBodyError: the header is no number, or more than the body has.
    """
    if header_length is None:
        return body, b""
    digits = header_length.isascii() and header_length.isdecimal() and len(header_length) <= len(str(len(body)))
    if not digits or int(header_length) > len(body):
        message = f"the header Inference-Header-Content-Length must be the bytes of JSON, 0 to {len(body)} in this body"
        raise MalformedBodyError.at("", message, value=header_length, limit=len(body))
    return body[: int(header_length)], body[int(header_length) :]


def binary_parts(inputs: Sequence[InputTensor], binary: bytes) -> list[bytes | None]:
    """Return each input's bytes, None where its elements are in the JSON.

    Raises:
        InvalidRequestError: a size that is none, elements in both forms, or sizes that do not add up to `binary`.
    """
    parts: list[bytes | None] = []
    used = 0
    for i, tensor in enumerate(inputs):
        size = (tensor.parameters or {}).get("binary_data_size")
        if size is None:
            parts.append(None)
            continue
        where = f"/inputs/{i}/parameters/binary_data_size"
        left = len(binary) - used
        if type(size) is not int or not 0 <= size <= left:
            message = f"it must be a number of bytes; {left} are left behind the JSON"
            raise InvalidRequestError.at(where, message, value=size, limit=left)
        if tensor.data is not None:
            raise InvalidRequestError.at(f"/inputs/{i}/data", "there is binary_data_size too: send one of them")
        parts.append(binary[used : used + size])
        used += size
    if used < len(binary):
        message = f"{len(binary)} bytes follow the JSON, the tensors' binary_data_size account for {used}"
        raise InvalidRequestError.at("", message, value=len(binary), limit=used)
    return parts


def texts(tensor: InputTensor, pointer: str, part: bytes | None) -> list[str]:
    """Return the texts of a BYTES tensor of shape [n] or [n, 1].

    Raises:
        InvalidRequestError: another type or shape, elements that do not fit it, or bytes that are no UTF-8.
    """
    _check_type(tensor, pointer, ["BYTES"])
    if len(tensor.shape) != 1 and tensor.shape[1:] != [1]:
        raise InvalidRequestError.at(f"{pointer}/shape", "texts have the shape [n] or [n, 1]", value=tensor.shape)
    if part is None:
        return _flat(tensor, pointer, str, "strings")
    result: list[str] = []
    used = 0
    while used < len(part):
        if len(result) == tensor.shape[0]:
            message = f"there are more elements than the {len(result)} of the shape {shown(tensor.shape)}"
            raise InvalidRequestError.at(f"{pointer}/data", message, limit=len(result))
        start = used + LENGTH.size
        used = start + LENGTH.unpack_from(part, used)[0] if start <= len(part) else start
        if used > len(part):
            message = f"the binary data ends inside of text {len(result)}"
            raise InvalidRequestError.at(pointer, message, limit=len(part))
        result.append(_decoded(part[start:used], f"{pointer}, text {len(result)}", pointer))
    _check_count(tensor, pointer, len(result))
    return result


def integers(tensor: InputTensor, pointer: str, part: bytes | None) -> Int64s:
    """Return the elements of an INT64 or INT32 tensor of shape [n, length].

    Raises:
        InvalidRequestError: another type or shape, or elements that do not fit it.
    """
    _check_type(tensor, pointer, list(INTEGERS))
    if len(tensor.shape) != 2:
        raise InvalidRequestError.at(f"{pointer}/shape", "tokens have the shape [n, length]", value=tensor.shape)
    if part is None:
        values = _flat(tensor, pointer, int, "integers")
        try:
            array = np.array(values, np.int64)
        except OverflowError:
            raise InvalidRequestError.at(f"{pointer}/data", "an integer does not fit 64 bits") from None
    else:
        kind = np.dtype(INTEGERS[tensor.datatype])
        if len(part) % kind.itemsize:
            message = f"an element has {kind.itemsize} bytes, so the size must be a multiple of that"
            raise InvalidRequestError.at(f"{pointer}/parameters/binary_data_size", message, value=len(part))
        array = np.frombuffer(part, kind).astype(np.int64)
        _check_count(tensor, pointer, len(array))
    try:
        return array.reshape(tensor.shape)
    except ValueError:  # no elements, and a dimension that numpy cannot count
        message = f"the shape {shown(tensor.shape)} is too large"
        raise InvalidRequestError.at(f"{pointer}/shape", message, value=tensor.shape) from None


def _check_type(tensor: InputTensor, pointer: str, allowed: Sequence[str]) -> None:
    if tensor.datatype not in allowed:
        names = " or ".join(allowed)
        message = f"the tensor '{shown(tensor.name)}' must be {names}"
        raise InvalidRequestError.at(f"{pointer}/datatype", message, value=tensor.datatype, limit=names)


def _check_count(tensor: InputTensor, pointer: str, count: int) -> None:
    if count != prod(tensor.shape):
        message = f"there are {count} elements, the shape {shown(tensor.shape)} has {shown(prod(tensor.shape))}"
        raise InvalidRequestError.at(f"{pointer}/data", message, value=count, limit=shown(prod(tensor.shape)))


def _flat(tensor: InputTensor, pointer: str, kind: type, names: str) -> list[Any]:
    """Return `data` as one list of elements of exactly `kind`."""
    data = tensor.data
    if data is None:
        message = "it is missing, and so is parameters.binary_data_size"
        raise InvalidRequestError.at(f"{pointer}/data", message)
    if len(tensor.shape) == 2 and data and all(type(row) is list for row in data):
        if len(data) != tensor.shape[0] or {len(row) for row in data} != {tensor.shape[1]}:
            message = f"the nested lists do not have the shape {shown(tensor.shape)}"
            raise InvalidRequestError.at(f"{pointer}/data", message)
        data = list(chain.from_iterable(data))
    if set(map(type, data)) - {kind}:
        place = next(i for i, value in enumerate(data) if type(value) is not kind)
        message = f"{tensor.datatype} elements are {names}; element {place} is none"
        raise InvalidRequestError.at(f"{pointer}/data", message, value=data[place])
    _check_count(tensor, pointer, len(data))
    return data


def _decoded(data: bytes, what: str, pointer: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequestError.at(pointer, f"{what} is not UTF-8: {error.reason} at byte {error.start}") from None


def written(response: InferResponse, tensors: Sequence[Tensor], binary: Sequence[bool]) -> tuple[bytes, int | None]:
    """Return a response with `tensors` as outputs, and where its JSON ends if some are `binary`."""
    outputs, parts = [], []
    for tensor, as_binary in zip(tensors, binary, strict=True):
        output: dict[str, Any] = {"name": tensor.name, "shape": tensor.shape, "datatype": tensor.datatype}
        if as_binary:
            parts.append(tensor.as_bytes())
            output["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            output["data"] = tensor.as_json()
        outputs.append(output)
    head = to_json({**response.model_dump(exclude_none=True), "outputs": outputs})
    return b"".join([head, *parts]), len(head) if any(binary) else None
