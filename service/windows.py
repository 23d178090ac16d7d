"""Texts to tokens, and tokens to windows that the encoder can read; every token is in at least one window."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from unicodedata import category

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from service.errors import InvalidRequestError, StartupError, TooLargeError

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
# Token ids and types of the same length.
Segment = tuple[Ints, Ints]

# A stride just below the room makes a window per token; so many windows are over any queue long before they are useful.
MOST_WINDOWS: Final = 4096


@dataclass(frozen=True)
class Tokens:
    """A text's N tokens without special ones.

    `ids`: int32 [N]. `spans`: int32 [N, 2], code points of each token in the caller's text. `words`: int32 [N], rising
    number of the word that a token belongs to, a word being what lies between spaces and punctuation.
    """

    ids: Ints
    spans: Ints
    words: Ints

    def __len__(self) -> int:
        """Return N."""
        return len(self.ids)


@dataclass(frozen=True)
class Window:
    """One sequence for the encoder: `ids` int32 [T], `types` int32 [T] (0 first, 1 second segment).

    Tokens `start` to `end` of the text lie at positions `offset` to `offset + end - start`.
    """

    ids: Ints
    types: Ints
    offset: int
    start: int
    end: int

    def content(self, logits: Floats) -> Floats:
        """Return the rows of `logits` [T, C] that belong to the text: [end - start, C]."""
        return logits[self.offset : self.offset + self.end - self.start]


@dataclass(frozen=True)
class Encoded:
    """One input, ready for the engine: the tokens of the text that is answered about, and the windows that cover it."""

    tokens: Tokens
    windows: tuple[Window, ...]


class TextTokenizer:
    """A WordPiece tokenizer, configured once and never mutated again: safe to share between threads."""

    def __init__(self, path: Path, vocabulary: int) -> None:
        """Read a tokenizer.json for a model with `vocabulary` embeddings.

        Raises:
            StartupError: not readable as one, without [CLS] and [SEP], or with more tokens than embeddings.
        """
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise StartupError(f"{path} is no tokenizer: {error}") from error
        if self._tokenizer.get_vocab_size() > vocabulary:
            count = self._tokenizer.get_vocab_size()
            raise StartupError(f"{path} has {count} tokens, the model only {vocabulary} embeddings: not of this model")
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        # "[SEP]" in a caller's text is six characters like any others, not the end of a segment.
        self._tokenizer.encode_special_tokens = True
        # WordPiece gives this one for words that it has no pieces for; None where the file has none.
        self.unknown: int | None = self._tokenizer.token_to_id("[UNK]")
        self.cls = self._special("[CLS]", path)
        self.sep = self._special("[SEP]", path)

    def _special(self, token: str, path: Path) -> int:
        number = self._tokenizer.token_to_id(token)
        if number is None:
            raise StartupError(f"{path} has no {token} token: not a BERT tokenizer")
        return int(number)

    def token(self, number: int) -> str:
        """Return the token with that id as the vocabulary spells it, "##s" and the like."""
        return str(self._tokenizer.id_to_token(number))

    def __call__(self, text: str) -> Tokens:
        """Return the tokens of `text`, which must be encodable: no lone surrogates."""
        # encode_batch releases the interpreter lock, encode holds it: for seconds where the text is long.
        encoding = self._tokenizer.encode_batch([text], add_special_tokens=False)[0]
        return Tokens(
            np.array(encoding.ids, np.int32),
            np.array(encoding.offsets, np.int32).reshape(-1, 2),
            np.array(encoding.word_ids, np.int32),
        )

    def pieces(self, ids: Ints) -> list[str]:
        """Return the tokens as the vocabulary spells them, "##" included."""
        return [str(self._tokenizer.id_to_token(number)) for number in ids.tolist()]

    def joined(self, pieces: Sequence[str]) -> str:
        """Return what the tokenizer's decoder makes of tokens: a text like the original, but normalised."""
        return str(self._tokenizer.decoder.decode(list(pieces)))


@dataclass(frozen=True)
class Windows:
    """How one model reads texts: windows of at most `length` tokens, neighbours sharing `stride` of them.

    `positions`: the longest window that the model can be asked for; None: `length`.
    """

    tokenizer: TextTokenizer
    length: int
    stride: int
    positions: int | None = None

    def of_length(self, length: int | None) -> "Windows":
        """Return the same with windows of `length` tokens; None is the model's.

        Raises:
            InvalidRequestError: longer than the model can read.
        """
        most = self.positions or self.length
        if length is not None and length > most:
            message = f"the model reads at most {most} tokens at once: ask for that or less"
            raise InvalidRequestError.at("/parameters/window", message, value=length, limit=most)
        return self if length is None else replace(self, length=length)

    def single(self, tokens: Tokens, stride: int | None = None) -> Encoded:
        """Return `tokens` as windows [CLS] text [SEP]; none for an empty text.

        Raises:
            InvalidRequestError: `stride` leaves no progress. TooLargeError: over MOST_WINDOWS.
        """
        stride = min(self.stride, self.length - 3) if stride is None else _checked_stride(stride, self.length - 2)
        return self._cut(_segment([self.tokenizer.cls], 0), tokens, 0, _segment([self.tokenizer.sep], 0), stride)

    def pair(
        self, question: Tokens, context: Tokens, stride: int | None, pointer: str, most: int | None = None
    ) -> Encoded:
        """Return windows [CLS] question [SEP] part of the context [SEP].

        `stride` None is the model's, or half the room that the question leaves where that is less. `most` tokens may be
        in the question; None: those that leave half of a window.

        Raises:
            InvalidRequestError: the question is too long, or `stride` leaves no progress; `pointer` is the JSON pointer
                of the input. TooLargeError: over MOST_WINDOWS.
        """
        half, all_but_one = (self.length - 3) // 2, self.length - 4
        limit = half if most is None else min(most, all_but_one)
        if len(question) > limit:
            why = "were allowed" if limit == most else "leave room for the context"
            raise InvalidRequestError.at(
                f"{pointer}/question",
                f"the question has {len(question)} tokens; at most {limit} {why}: shorten it",
                value=len(question),
                limit=limit,
            )
        room = self.room(question)
        stride = min(self.stride, room // 2) if stride is None else _checked_stride(stride, room)
        return self._cut(self._head(question), context, 1, _segment([self.tokenizer.sep], 1), stride)

    def both(self, first: Tokens, second: Tokens, pointer: str) -> Encoded:
        """Return windows [CLS] first [SEP] second [SEP] where the longer text is cut and the shorter one is whole.

        Raises:
            InvalidRequestError: the shorter text takes more than half a window. TooLargeError: over MOST_WINDOWS.
        """
        shorter = min(len(first), len(second))
        limit = (self.length - 3) // 2
        if len(first) + len(second) > self.length - 3 and shorter > limit:
            where = f"{pointer}/{'text' if shorter == len(first) else 'text_pair'}"
            message = f"the shorter text has {shorter} tokens; at most {limit} leave room for the other: shorten it"
            raise InvalidRequestError.at(where, message, value=shorter, limit=limit)
        stride = min(self.stride, (self.length - 3 - shorter) // 2)
        if shorter == len(first):
            return self._cut(self._head(first), second, 1, _segment([self.tokenizer.sep], 1), stride)
        behind = [self.tokenizer.sep, *second.ids.tolist(), self.tokenizer.sep]
        tail = np.array(behind, np.int32), np.array([0, *[1] * (len(behind) - 1)], np.int32)
        return self._cut(_segment([self.tokenizer.cls], 0), first, 0, tail, stride)

    def room(self, question: Tokens) -> int:
        """Return how many tokens of a context fit beside `question`."""
        return self.length - 3 - len(question)

    def _head(self, text: Tokens) -> Segment:
        return _segment([self.tokenizer.cls, *text.ids.tolist(), self.tokenizer.sep], 0)

    def _cut(self, head: Segment, tokens: Tokens, segment: int, tail: Segment, stride: int) -> Encoded:
        places = cuts(len(tokens), self.length - len(head[0]) - len(tail[0]), stride)
        if len(places) > MOST_WINDOWS:
            message = f"the text makes {len(places)} windows, at most {MOST_WINDOWS} are allowed: split it"
            raise TooLargeError.at("/inputs", message, value=len(places), limit=MOST_WINDOWS)
        windows = []
        for start, end in places:
            ids = np.concatenate([head[0], tokens.ids[start:end], tail[0]])
            types = np.concatenate([head[1], np.full(end - start, segment, np.int32), tail[1]])
            windows.append(Window(ids, types, len(head[0]), start, end))
        return Encoded(tokens, tuple(windows))


def _segment(ids: list[int], number: int) -> Segment:
    return np.array(ids, np.int32), np.full(len(ids), number, np.int32)


def _checked_stride(stride: int, room: int) -> int:
    if stride >= room:
        message = f"a window holds {room} tokens of text here, so neighbours can share at most {room - 1}"
        raise InvalidRequestError.at("/parameters/stride", message, value=stride, limit=room - 1)
    return stride


def cuts(count: int, room: int, stride: int) -> list[tuple[int, int]]:
    """Cover `count` tokens with spans of at most `room`, neighbours sharing `stride` (< room) tokens; none for none."""
    result = [(0, min(room, count))] if count else []
    while result and result[-1][1] < count:
        start = result[-1][1] - stride
        result.append((start, min(start + room, count)))
    return result


def merged(encoded: Encoded, logits: Sequence[Floats]) -> Floats:
    """Return one row of logits per token of the text, [N, C], from the windows' logits [T, C] each.

    A token in two windows takes its row from the one where it lies farther from an edge and so sees more context.
    """
    result = np.zeros((len(encoded.tokens), logits[0].shape[1] if logits else 0), np.float32)
    depth = np.full(len(encoded.tokens), -1)
    for window, values in zip(encoded.windows, logits, strict=True):
        places = np.arange(window.offset, window.offset + window.end - window.start)
        inside = np.minimum(places, len(window.ids) - 1 - places)
        better = inside > depth[window.start : window.end]
        result[window.start : window.end][better] = window.content(values)[better]
        depth[window.start : window.end][better] = inside[better]
    return result


def with_marks(text: str, end: int) -> int:
    """Return `end` moved behind combining marks there: tokenizers drop accents, but "café" ends after its accent."""
    while end < len(text) and category(text[end])[0] == "M":
        end += 1
    return end
