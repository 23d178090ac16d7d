"""The decoder of one matrix: what the writer codes comes back, and every way to be wrong has its error."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.pack import rice_encode
from engine import _engine


def bits(text: str) -> np.ndarray:
    """Pack a text of 0 and 1, the first character lowest."""
    return np.packbits(np.array([c == "1" for c in text.replace(" ", "")], bool), bitorder="little")


def decode(stream: np.ndarray, survivors: list[int], values: list[int], columns: int = 8, rice: int = 1) -> np.ndarray:
    return _engine.decode(columns, rice, stream, np.array(survivors, np.uint16), np.array(values, np.int8))


def test_a_stream_written_by_hand() -> None:
    # Rows [., 5, ., ., -6] and [7]: gaps 1, 2 and 0; k = 1: quotients 0, 1, 0 and low bits 1, 0, 0.
    dense = decode(bits("1 1  01 0  1 0"), [2, 1], [5, -6, 7])
    assert dense.tolist() == [[0, 5, 0, 0, -6, 0, 0, 0], [7, 0, 0, 0, 0, 0, 0, 0]]


def test_no_survivors_at_all() -> None:
    assert not decode(bits(""), [0, 0, 0], []).any()


@pytest.mark.parametrize("survivors", [[1], [1, 1]])
def test_a_column_beyond_the_matrix(survivors: list[int]) -> None:
    with pytest.raises(_engine.IndexOutOfRangeError, match="column 8 or beyond, but there are 8"):
        decode(bits("00001 0 1 0"), survivors, [1] * len(survivors))


def test_a_run_of_zeros_longer_than_the_matrix() -> None:
    with pytest.raises(_engine.IndexOutOfRangeError):
        decode(np.zeros(1000, np.uint8), [1], [1])


@pytest.mark.parametrize("stream", ["", "0000", "1", "0000 0001"])
def test_a_stream_that_ends_inside_a_gap(stream: str) -> None:
    with pytest.raises(_engine.PositionsTruncatedError):
        decode(bits(stream), [2], [1, 1], columns=100, rice=9)


@pytest.mark.parametrize("stream", ["1 0 1", "1 0 0000001", "1 0 000000 00000000"])
def test_a_stream_that_goes_on(stream: str) -> None:
    with pytest.raises(_engine.PositionsTrailingError):
        decode(bits(stream), [1], [1])


@pytest.mark.parametrize("weight", [-128, -65, 65, 127])
def test_a_weight_out_of_range(weight: int) -> None:
    with pytest.raises(_engine.WeightOutOfRangeError, match=str(weight)):
        decode(bits("1 0"), [1], [weight])


@pytest.mark.parametrize(
    ("survivors", "values", "columns", "rice", "message"),
    [
        ([2], [1], 8, 1, "sum to 2, but there are 1 values"),
        ([], [], 8, 1, "rows is 0"),
        ([0], [], 0, 1, "columns is 0"),
        ([0], [], 16385, 1, "columns is 16385"),
        ([0], [], 8, 16, "rice is 16"),
        ([0], [], 8, -1, "rice is -1"),
    ],
)
def test_sizes_that_disagree(survivors: list[int], values: list[int], columns: int, rice: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(bits(""), survivors, values, columns, rice)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 400), st.sampled_from([0, 0.003, 0.1, 0.6, 1]))
def test_what_the_writer_codes_comes_back(seed: int, rows: int, columns: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.integers(-64, 65, (rows, columns)).astype(np.int8)
    weight[rng.random(weight.shape) > density] = 0
    positions, survivors, values, rice = rice_encode(weight)
    np.testing.assert_array_equal(_engine.decode(columns, rice, positions, survivors, values), weight)


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=40), st.lists(st.integers(0, 12), min_size=1, max_size=4), st.integers(1, 12), st.integers(0, 15)
)
def test_any_bytes_are_decoded_or_refused(stream: bytes, survivors: list[int], columns: int, rice: int) -> None:
    values = [1] * sum(survivors)
    try:
        dense = decode(np.frombuffer(stream, np.uint8), survivors, values, columns, rice)
    except (_engine.IndexOutOfRangeError, _engine.PositionsTruncatedError, _engine.PositionsTrailingError):
        return
    assert (dense != 0).sum(axis=1).tolist() == survivors
