"""Tensors on the wire: every form reads to the same values, and what does not fit is named."""

import json
import struct
from typing import Any

import numpy as np
import pytest

from service.errors import InvalidRequestError, MalformedBodyError
from service.tensors import InferResponse, InputTensor, Tensor, binary_parts, integers, split, texts, written

TEXTS = ["", "a", "é😀", "\0"]
BINARY_TEXTS = b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in TEXTS)


def tensor(shape: list[int], datatype: str, data: Any = None, **parameters: Any) -> InputTensor:
    return InputTensor(name="t", shape=shape, datatype=datatype, data=data, parameters=parameters)


def test_texts_are_the_same_in_every_form() -> None:
    for shape in ([4], [4, 1]):
        assert texts(tensor(shape, "BYTES", TEXTS), "", None) == TEXTS
        assert texts(tensor(shape, "BYTES"), "", BINARY_TEXTS) == TEXTS
    assert texts(tensor([4, 1], "BYTES", [[text] for text in TEXTS]), "", None) == TEXTS
    assert texts(tensor([0], "BYTES", []), "", None) == texts(tensor([0], "BYTES"), "", b"") == []


def test_integers_are_the_same_in_every_form() -> None:
    rows = [[1, -2, 3], [4, 5, 2**31 - 1]]
    flat = [value for row in rows for value in row]
    forms = [
        integers(tensor([2, 3], "INT64", rows), "", None),
        integers(tensor([2, 3], "INT32", flat), "", None),
        integers(tensor([2, 3], "INT64"), "", np.array(rows, "<i8").tobytes()),
        integers(tensor([2, 3], "INT32"), "", np.array(rows, "<i4").tobytes()),
    ]
    for form in forms:
        assert form.dtype == np.int64
        assert form.tolist() == rows
    assert integers(tensor([0, 3], "INT64", []), "", None).shape == (0, 3)


BAD_TEXTS: list[tuple[InputTensor, bytes | None, str, str]] = [
    (tensor([1], "FP32", [1.0]), None, "/datatype", "must be BYTES"),
    (tensor([], "BYTES", ["a"]), None, "/shape", "[n] or [n, 1]"),
    (tensor([1, 2], "BYTES", ["a", "b"]), None, "/shape", "[n] or [n, 1]"),
    (tensor([1], "BYTES"), None, "/data", "missing"),
    (tensor([2], "BYTES", ["a"]), None, "/data", "1 elements, the shape [2] has 2"),
    (tensor([2], "BYTES", ["a", 1]), None, "/data", "element 1 is none"),
    (tensor([2, 1], "BYTES", [["a"], ["b", "c"]]), None, "/data", "nested lists"),
    (tensor([1], "BYTES"), b"\1\0\0", "", "ends inside of text 0"),
    (tensor([1], "BYTES"), b"\2\0\0\0a", "", "ends inside of text 0"),
    (tensor([1], "BYTES"), b"\xff\xff\xff\xffa", "", "ends inside of text 0"),
    (tensor([1], "BYTES"), b"\1\0\0\0\xff", "", "text 0 is not UTF-8: invalid start byte at byte 0"),
    (tensor([2], "BYTES"), b"\1\0\0\0a", "/data", "1 elements, the shape [2] has 2"),
    # What is behind them is not read.
    (tensor([1], "BYTES"), b"\1\0\0\0a\1\0\0\0\xff", "/data", "more elements than the 1 of the shape [1]"),
    (tensor([0, 1], "BYTES"), b"\1\0\0\0\xff", "/data", "more elements than the 0 of the shape [0, 1]"),
    (tensor([2**63 - 1, 1], "BYTES"), b"", "/data", "0 elements"),
]


@pytest.mark.parametrize(("given", "part", "pointer", "message"), BAD_TEXTS)
def test_texts_that_do_not_fit_are_refused(given: InputTensor, part: bytes | None, pointer: str, message: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        texts(given, "/inputs/0", part)
    assert error.value.fields[0].pointer == "/inputs/0" + pointer
    assert message in error.value.detail


BAD_INTEGERS: list[tuple[InputTensor, bytes | None, str, str]] = [
    (tensor([1, 1], "FP32", [1.0]), None, "/datatype", "INT64 or INT32"),
    (tensor([1], "INT64", [1]), None, "/shape", "[n, length]"),
    (tensor([1, 1], "INT64", [1.0]), None, "/data", "element 0 is none"),
    (tensor([1, 1], "INT64", [True]), None, "/data", "element 0 is none"),
    (tensor([1, 1], "INT64", [2**63]), None, "/data", "64 bits"),
    (tensor([2, 2], "INT64", [[1, 2], [3]]), None, "/data", "nested lists"),
    (tensor([2, 2], "INT64", [[1, 2], 3, 4]), None, "/data", "element 0 is none"),
    (tensor([2, 2], "INT64", [1, 2, 3]), None, "/data", "3 elements, the shape [2, 2] has 4"),
    (tensor([1, 1], "INT64"), b"1234567", "/parameters/binary_data_size", "multiple"),
    (tensor([1, 2], "INT32"), b"1234", "/data", "1 elements, the shape [1, 2] has 2"),
    (tensor([2**63 - 1, 2**63 - 1], "INT32"), b"", "/data", "0 elements"),
    (tensor([0, 2**63 - 1], "INT64", []), None, "/shape", "is too large"),
    (tensor([2**63 - 1, 0], "INT32"), b"", "/shape", "is too large"),
]


@pytest.mark.parametrize(("given", "part", "pointer", "message"), BAD_INTEGERS)
def test_integers_that_do_not_fit_are_refused(
    given: InputTensor, part: bytes | None, pointer: str, message: str
) -> None:
    with pytest.raises(InvalidRequestError) as error:
        integers(given, "/inputs/0", part)
    assert error.value.fields[0].pointer == "/inputs/0" + pointer
    assert message in error.value.detail


def test_the_bytes_behind_the_json_are_cut_by_their_sizes() -> None:
    inputs = [tensor([1], "X", binary_data_size=2), tensor([1], "X", [1]), tensor([1], "X", binary_data_size=0)]
    assert binary_parts(inputs, b"ab") == [b"ab", None, b""]
    for size in (3, -1, "2", True, 2.0, 2**70):
        with pytest.raises(InvalidRequestError, match="2 are left") as error:
            binary_parts([tensor([1], "X", binary_data_size=size)], b"ab")
        assert error.value.fields[0].pointer == "/inputs/0/parameters/binary_data_size"
    with pytest.raises(InvalidRequestError, match=r"3 bytes follow the JSON, .* account for 2"):
        binary_parts(inputs, b"abc")
    with pytest.raises(InvalidRequestError, match="/inputs/0/data: there is binary_data_size too"):
        binary_parts([tensor([1], "X", [1], binary_data_size=2)], b"ab")


def test_the_header_says_where_the_json_ends() -> None:
    assert split(b"{}ab", None) == (b"{}ab", b"")
    assert split(b"{}ab", "2") == (b"{}", b"ab")
    for header in ("5", "-1", "", "²", "2.0", "9" * 5000):
        with pytest.raises(MalformedBodyError, match="0 to 4"):
            split(b"{}ab", header)


def test_outputs_are_written_in_the_form_that_was_asked_for() -> None:
    tensors = [
        Tensor("t", TEXTS),
        Tensor("f", np.array([[0.1, 2.0]], np.float32)),
        Tensor("i", np.array([3, -4])),
    ]
    response = InferResponse(model_name="m", model_version="1", parameters={"tokens": 1}, outputs=[])
    content, head = written(response, tensors, [False, False, False])
    assert head is None
    body = json.loads(content)
    assert "id" not in body
    assert [output["data"] for output in body["outputs"]] == [TEXTS, np.float32([0.1, 2.0]).tolist(), [3, -4]]
    content, head = written(response, tensors, [True, True, True])
    body = json.loads(content[:head])
    assert [output["shape"] for output in body["outputs"]] == [[4], [1, 2], [2]]
    assert [output["datatype"] for output in body["outputs"]] == ["BYTES", "FP32", "INT64"]
    assert [output["parameters"]["binary_data_size"] for output in body["outputs"]] == [len(BINARY_TEXTS), 8, 16]
    assert content[head:] == BINARY_TEXTS + struct.pack("<ffqq", 0.1, 2.0, 3, -4)
