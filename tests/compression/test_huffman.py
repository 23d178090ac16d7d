"""The writer's half of the value code; tests/engine/test_packed.py has the reader's, and both together."""

import heapq
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.huffman import canonical_codes, code_lengths, huffman_encode


def unlimited(counts: list[int]) -> int:
    """Bits in all of a Huffman code without a longest length: the two rarest merge until one is left."""
    heap, total = [count for count in counts if count], 0
    heapq.heapify(heap)
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        total += both
        heapq.heappush(heap, both)
    return total


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=2, max_size=128).filter(lambda counts: sum(map(bool, counts)) > 1))
def test_lengths_are_a_full_code_and_the_best_where_no_limit_binds(counts: list[int]) -> None:
    lengths = code_lengths(counts)
    assert [length > 0 for length in lengths] == [count > 0 for count in counts]
    assert sum(2.0**-length for length in lengths if length) == 1
    assert max(lengths) <= 12
    cost = sum(count * length for count, length in zip(counts, lengths, strict=True))
    assert cost >= unlimited(counts)
    if max(lengths) < 12:
        assert cost == unlimited(counts)


def test_a_limit_that_binds_costs_as_little_as_any_code_within_it() -> None:
    # Fibonacci numbers make the longest codes: without a limit 1, 2, 3, 4, 5, 5. By hand with at most 3 bits for six
    # symbols: two of 2 bits, four of 3.
    assert code_lengths([1, 1, 2, 3, 5, 8], longest=3) == [3, 3, 3, 3, 2, 2]
    fibonacci = [1, 1]
    while len(fibonacci) < 30:
        fibonacci.append(sum(fibonacci[-2:]))
    lengths = code_lengths(fibonacci)
    assert max(lengths) == 12 and sum(2.0**-length for length in lengths) == 1


def test_one_value_has_one_bit_and_none_has_none() -> None:
    assert code_lengths([0, 7, 0]) == [0, 1, 0]
    assert code_lengths([0, 0]) == [0, 0]
    lengths, stream = huffman_encode(np.array([], np.int8))
    assert not lengths.any() and len(stream) == 0


def test_codes_by_hand() -> None:
    assert canonical_codes([2, 1, 0, 2]) == [0b10, 0b0, 0, 0b11]
    # 1 occurs most: 0; -64 is 10, 64 is 11, their highest bits first: 10 0 0 11, filled from the lowest bit.
    lengths, stream = huffman_encode(np.array([-64, 1, 1, 64], np.int8))
    assert {int(i): int(lengths[i]) for i in np.flatnonzero(lengths)} == {0: 2, 64: 1, 127: 2}
    assert stream.tolist() == [0b110001]


def test_bits_per_value_are_near_the_entropy_of_what_pruning_leaves() -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(400_000)
    kept = weights[np.abs(weights) > np.quantile(np.abs(weights), 0.9)]
    values = np.clip(np.rint(kept / np.abs(kept).max() * 64), -64, 64).astype(np.int8)
    shares = np.bincount(values.astype(int) + 64) / len(values)
    entropy = -sum(share * math.log2(share) for share in shares if share)
    assert entropy <= 8 * len(huffman_encode(values)[1]) / len(values) < 1.01 * entropy


@pytest.mark.parametrize("value", [0, -65, 65, 127, -128])
def test_values_that_have_no_place(value: int) -> None:
    with pytest.raises(ValueError, match=r"must be in \[-64, 64\] and not 0"):
        huffman_encode(np.array([5, value], np.int8))
