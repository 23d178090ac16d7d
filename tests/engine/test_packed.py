"""The decoder of one matrix: what the writer codes comes back, and every way to be wrong has its error."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.huffman import huffman_encode
from compression.pack import rice_encode
from engine import _engine


def bits(text: str) -> np.ndarray:
    """Pack a text of 0 and 1, the first character lowest."""
    return np.packbits(np.array([c == "1" for c in text.replace(" ", "")], bool), bitorder="little")


def decode(stream: np.ndarray, survivors: list[int], values: list[int], columns: int = 8, rice: int = 1) -> np.ndarray:
    coded = huffman_encode(np.array(values, np.int8))
    return _engine.decode(columns, rice, stream, np.array(survivors, np.uint16), *coded)


def decode_values(lengths: dict[int, int], stream: str, count: int = 1) -> list[int]:
    """Decode a row of `count` values in columns 0, 1, ...; `lengths` are those of the codes by value."""
    all_lengths = np.zeros(128, np.uint8)
    for value, length in lengths.items():
        all_lengths[value + 64 - (value > 0)] = length
    columns = max(1, count)
    dense = _engine.decode(columns, 0, bits("1" * count), np.array([count], np.uint16), all_lengths, bits(stream))
    return dense[0].tolist()


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


def test_values_written_by_hand() -> None:
    # Canonical: the one of 1 bit is 0, those of 2 bits are 10 (-64) and 11 (64), highest bit first.
    assert decode_values({5: 1, -64: 2, 64: 2}, "10 0 11 0", 4) == [-64, 5, 64, 5]
    assert decode_values({-1: 1}, "000", 3) == [-1, -1, -1]
    longest = {-64: 12, -63: 12} | {value: value for value in range(1, 12)}
    assert decode_values(longest, "111111111111 111111111110 0 111111111110", 4) == [-63, -64, 1, -64]


@pytest.mark.parametrize(
    ("lengths", "stream", "message"),
    [
        ({1: 13}, "0", "13 bits, must be 0 to 12"),
        ({1: 255}, "0", "255 bits, must be 0 to 12"),
        ({1: 1, 2: 2}, "0", "fill 3072 of 4096 places"),
        ({1: 1, 2: 1, 3: 1}, "0", "fill 6144 of 4096 places"),
        ({1: 2}, "00", "fill 1024 of 4096 places"),
        ({}, "0", "fill 0 of 4096 places"),
        ({1: 1}, "1", "a code that stands for no value"),
    ],
)
def test_lengths_that_make_no_code(lengths: dict[int, int], stream: str, message: str) -> None:
    with pytest.raises(_engine.ValueCodeWrongError, match=message):
        decode_values(lengths, stream)


@pytest.mark.parametrize(("stream", "count"), [("", 1), ("1", 9), ("00000000", 9), ("1" * 16, 9), ("00000001", 8)])
def test_values_that_end_too_early(stream: str, count: int) -> None:
    with pytest.raises(_engine.ValuesTruncatedError):
        decode_values({5: 1, 6: 2, 7: 2}, stream, count)


@pytest.mark.parametrize("stream", ["0 0000000 0", "0 1", "0 0000000 00000000"])
def test_values_that_go_on(stream: str) -> None:
    with pytest.raises(_engine.ValuesTrailingError):
        decode_values({5: 1, 6: 1}, stream)


def test_more_survivors_than_bits_are_refused_before_room_is_made_for_them() -> None:
    survivors = np.full(8192, 65535, np.uint16)
    with pytest.raises(_engine.ValuesTruncatedError, match="536862720 values do not fit"):
        _engine.decode(8192, 0, np.zeros(1, np.uint8), survivors, np.zeros(128, np.uint8), np.zeros(1, np.uint8))


def test_a_table_of_another_size() -> None:
    with pytest.raises(ValueError, match="value_lengths must hold 128 entries"):
        _engine.decode(8, 0, bits(""), np.zeros(1, np.uint16), np.zeros(127, np.uint8), bits(""))


@pytest.mark.parametrize(
    ("survivors", "values", "columns", "rice", "message"),
    [
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
    decoded = _engine.decode(columns, rice, positions, survivors, *huffman_encode(values))
    np.testing.assert_array_equal(decoded, weight)


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


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=128, max_size=128), st.binary(max_size=20), st.integers(0, 60))
def test_any_bytes_of_values_are_decoded_or_refused(lengths: list[int], stream: bytes, count: int) -> None:
    try:
        row = _engine.decode(
            64, 0, bits("1" * count), np.array([count], np.uint16), np.array(lengths, np.uint8),
            np.frombuffer(stream, np.uint8),
        )  # fmt: skip
    except (_engine.ValueCodeWrongError, _engine.ValuesTruncatedError, _engine.ValuesTrailingError):
        return
    assert (row != 0).sum() == count
