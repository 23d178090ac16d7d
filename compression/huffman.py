"""A canonical Huffman code for the values of survivors: docs/artifact.md, section 3. numpy only."""

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from engine.artifact import VALUES

LONGEST_CODE = 12
UInt8s = npt.NDArray[np.uint8]


def huffman_encode(values: npt.NDArray[np.int8]) -> tuple[UInt8s, UInt8s]:
    """Code int8 values in [-64, 64] without 0: uint8 [128] lengths of the codes, and the stream.

    Raises ValueError for a value that has no place.
    """
    limit = VALUES // 2
    wide = values.astype(np.int64)
    if ((wide == 0) | (np.abs(wide) > limit)).any():
        raise ValueError(f"the values are from {wide.min()} to {wide.max()}, must be in [-{limit}, {limit}] and not 0")
    symbols = np.where(wide < 0, wide + limit, wide + limit - 1)
    lengths = np.array(code_lengths(np.bincount(symbols, minlength=VALUES).tolist()), np.uint8)
    codes = np.array(canonical_codes(lengths.tolist()), np.int64)
    bits_of = lengths[symbols].astype(np.int64)
    starts = np.cumsum(bits_of) - bits_of
    bits = np.zeros(int(bits_of.sum()), np.uint8)
    for i in range(LONGEST_CODE):  # the highest bit of a code comes first
        reaches = bits_of > i
        bits[starts[reaches] + i] = codes[symbols[reaches]] >> (bits_of[reaches] - 1 - i) & 1
    return lengths, np.packbits(bits, bitorder="little")


def code_lengths(counts: Sequence[int], longest: int = LONGEST_CODE) -> list[int]:
    """Return the bits of each symbol's code: the fewest in all that codes of at most `longest` bits can have.

    A symbol that does not occur has 0 bits, a single one 1. Package-merge: Larmore and Hirschberg, "A fast algorithm
    for optimal length-limited Huffman codes", 1990.
    """
    lengths = [0] * len(counts)
    coins: list[tuple[int, tuple[int, ...]]] = sorted((count, (i,)) for i, count in enumerate(counts) if count)
    if len(coins) < 2:
        return [int(count > 0) for count in counts]
    chosen = coins
    for _ in range(longest - 1):
        pairs = zip(chosen[::2], chosen[1::2], strict=False)
        packages = [(first[0] + second[0], first[1] + second[1]) for first, second in pairs]
        chosen = sorted(coins + packages, key=lambda coin: coin[0])
    for symbol in itertools.chain.from_iterable(symbols for _, symbols in chosen[: 2 * len(coins) - 2]):
        lengths[symbol] += 1
    return lengths


def canonical_codes(lengths: Sequence[int]) -> list[int]:
    """Return each symbol's code: shorter ones first, then in the order of symbols; 0 where there is none."""
    codes, code, before = [0] * len(lengths), 0, 0
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(lengths) if length):
        code <<= length - before
        codes[symbol], code, before = code, code + 1, length
    return codes
