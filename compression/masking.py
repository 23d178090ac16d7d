"""An array of tokens to windows with masked tokens: what a masked language model is trained on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from compression.encode import IGNORED, Window, special_id
from compression.recipe import LanguageTask
from compression.text import Corpus

# A masked token becomes [MASK], a random token or stays: 80, 10 and 10 % (BERT, arXiv 1810.04805, section 3.1).
BECOMES_MASK, BECOMES_RANDOM = 0.8, 0.1
# Half of the pairs follow each other (BERT, the same section).
FOLLOWS = 0.5
# The end of a document that is shorter than this is left out: next to nothing is left to guess from.
FEWEST_TOKENS = 8

Segments = NDArray[np.int64]


def cut_segments(
    corpus: Corpus,
    documents: NDArray[np.int64],
    task: LanguageTask,
    short: float,
    tokenizer: Tokenizer,
    seed: int,
    limit: int = 0,
) -> Segments:
    """Cut documents into the segments of windows: int64 [W, 5], a row is (A start, A end, B start, B end, label).

    A window never reaches over a document's end. A share `short` of them is cut at a random length, so that the model
    knows short inputs. With next-sentence pairs A ends at the end of a sentence where the window holds one; B is what
    follows (label 0) or a piece of another document (label 1), as transformers numbers them. Else B is empty, and the
    label is IGNORED. A `limit` gives the first rows alone.
    """
    ends = [number for mark in ".!?" if (number := tokenizer.token_to_id(mark)) is not None]
    plain = replace(corpus, tokens=np.asarray(corpus.tokens))  # slices of a memmap cost more than they are worth
    rows = _cut(plain, documents, task, short, ends, np.random.default_rng((seed, len(documents))))
    return np.fromiter(islice(rows, limit or None), np.dtype((np.int64, 5)))


def _cut(
    corpus: Corpus,
    documents: NDArray[np.int64],
    task: LanguageTask,
    short: float,
    ends: Sequence[int],
    random: np.random.Generator,
) -> Iterator[tuple[int, int, int, int, int]]:
    for place, document in enumerate(documents):
        at, end = int(corpus.starts[document]), int(corpus.starts[document + 1])
        while end - at >= FEWEST_TOKENS:
            room = task.window - (3 if task.next_sentence else 2)
            wanted = int(random.integers(FEWEST_TOKENS, room + 1)) if random.random() < short else room
            stop = min(at + wanted, end)
            if not task.next_sentence:
                yield at, stop, 0, 0, IGNORED
            else:
                middle = at + _sentence_end(corpus.tokens[at:stop], ends, random)
                if random.random() < FOLLOWS or len(documents) < 2:
                    yield at, middle, middle, stop, 0
                else:
                    other = documents[(place + int(random.integers(1, len(documents)))) % len(documents)]
                    yield at, middle, *_piece(corpus, int(other), wanted - (middle - at), ends, random), 1
                    stop = middle
            at = stop


def _sentence_end(tokens: NDArray[np.unsignedinteger], ends: Sequence[int], random: np.random.Generator) -> int:
    """A random place after a full stop, question or exclamation mark with something behind it; else any place."""
    closing = np.zeros(len(tokens) - 1, np.bool_)
    for end in ends:  # np.isin takes ten to forty times as long
        closing |= tokens[:-1] == end
    places = np.flatnonzero(closing) + 1
    return int(random.choice(places)) if len(places) else int(random.integers(1, len(tokens)))


def _piece(
    corpus: Corpus, document: int, length: int, ends: Sequence[int], random: np.random.Generator
) -> tuple[int, int]:
    """A piece that begins where a following one may: else where it begins would tell that it does not follow."""
    start, end = int(corpus.starts[document]), int(corpus.starts[document + 1])
    first = start + (_sentence_end(corpus.tokens[start:end], ends, random) if end - start > 1 else 0)
    return first, min(first + length, end)


@dataclass(frozen=True)
class MaskedWindows(Sequence[Window]):
    """W windows, masked anew in every epoch: number e * W + i is window i as epoch e masks it.

    What is masked is a function of (seed, number) alone, so a resumed run sees what the first would have. In a
    window's `targets` int32 [T] stand the ids of masked tokens, IGNORED elsewhere; targets[0], the place of [CLS],
    holds the next-sentence label. Numbers have no upper end; iteration gives epoch 0.
    """

    corpus: Corpus
    segments: Segments
    tokenizer: Tokenizer
    masked: float
    seed: int

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.segments)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each window with its special tokens, int64 [W]."""
        a, b = self.segments[:, 1] - self.segments[:, 0], self.segments[:, 3] - self.segments[:, 2]
        return a + b + 2 + (b > 0)

    def __getitem__(self, number: Any) -> Any:
        """Make a window; slices are not needed."""
        place = number % len(self)
        a_start, a_end, b_start, b_end, label = self.segments[place].tolist()
        ids = self._join(a_start, a_end, b_start, b_end)
        types = np.zeros_like(ids)
        if b_end > b_start:
            types[a_end - a_start + 2 :] = 1
        targets = self._mask(ids, np.random.default_rng((self.seed, number)))
        targets[0] = label
        return Window(place, ids, types, targets, np.empty(0, np.int32))

    def __iter__(self) -> Iterator[Window]:
        """Yield every window once."""
        return (self[number] for number in range(len(self)))

    def _join(self, a_start: int, a_end: int, b_start: int, b_end: int) -> NDArray[np.int32]:
        cls, sep = (special_id(self.tokenizer, token) for token in ("[CLS]", "[SEP]"))
        parts: list[Any] = [[cls], self.corpus.tokens[a_start:a_end], [sep]]
        if b_end > b_start:
            parts += [self.corpus.tokens[b_start:b_end], [sep]]
        return np.concatenate(parts).astype(np.int32)

    def _mask(self, ids: NDArray[np.int32], random: np.random.Generator) -> NDArray[np.int32]:
        """Mask `ids` in place, at least one of them; return the targets."""
        special = (ids == special_id(self.tokenizer, "[CLS]")) | (ids == special_id(self.tokenizer, "[SEP]"))
        guessed = (random.random(len(ids)) < self.masked) & ~special
        if not guessed.any():
            guessed[random.choice(np.flatnonzero(~special))] = True
        targets = np.where(guessed, ids, IGNORED).astype(np.int32)
        fate = random.random(len(ids))
        replaced = random.integers(0, self.tokenizer.get_vocab_size(), len(ids))
        ids[guessed & (fate < BECOMES_MASK)] = special_id(self.tokenizer, "[MASK]")
        at_random = guessed & (fate >= BECOMES_MASK) & (fate < BECOMES_MASK + BECOMES_RANDOM)
        ids[at_random] = replaced[at_random]
        return targets
