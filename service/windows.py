"""Texts to tokens, and tokens to windows that the encoder can read; every token is in at least one window."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unicodedata import category

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from service.errors import InvalidRequestError, StartupError

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]


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
        self.cls = self._special("[CLS]", path)
        self.sep = self._special("[SEP]", path)

    def _special(self, token: str, path: Path) -> int:
        number = self._tokenizer.token_to_id(token)
        if number is None:
            raise StartupError(f"{path} has no {token} token: not a BERT tokenizer")
        return int(number)

    def __call__(self, text: str) -> Tokens:
        """Return the tokens of `text`, which must be encodable: no lone surrogates."""
        # encode_batch releases the interpreter lock, encode holds it: for seconds where the text is long.
        encoding = self._tokenizer.encode_batch([text], add_special_tokens=False)[0]
        return Tokens(
            np.array(encoding.ids, np.int32),
            np.array(encoding.offsets, np.int32).reshape(-1, 2),
            np.array(encoding.word_ids, np.int32),
        )


@dataclass(frozen=True)
class Windows:
    """How one model reads texts: windows of at most `length` tokens, neighbours sharing `stride` of them."""

    tokenizer: TextTokenizer
    length: int
    stride: int

    def single(self, tokens: Tokens) -> Encoded:
        """Return `tokens` as windows [CLS] text [SEP]; none for an empty text."""
        return self._windows([self.tokenizer.cls], tokens, 0, min(self.stride, self.length - 3))

    def pair(self, question: Tokens, context: Tokens, stride: int | None, pointer: str) -> Encoded:
        """Return windows [CLS] question [SEP] part of the context [SEP].

        `stride` None is the model's, or half the room that the question leaves where that is less.

        Raises:
            InvalidRequestError: the question takes more than half a window, or `stride` leaves no progress; `pointer`
                is the JSON pointer of the input.
        """
        limit = (self.length - 3) // 2
        if len(question) > limit:
            raise InvalidRequestError.at(
                f"{pointer}/question",
                f"the question has {len(question)} tokens; at most {limit} leave room for the context: shorten it",
                value=len(question),
                limit=limit,
            )
        room = self.length - 3 - len(question)
        if stride is None:
            stride = min(self.stride, room // 2)
        elif stride >= room:
            raise InvalidRequestError.at(
                "/parameters/stride",
                f"with this question a window holds {room} tokens of context, so stride must be below that",
                value=stride,
                limit=room - 1,
            )
        head = [self.tokenizer.cls, *question.ids.tolist(), self.tokenizer.sep]
        return self._windows(head, context, 1, stride)

    def _windows(self, head: list[int], tokens: Tokens, segment: int, stride: int) -> Encoded:
        room = self.length - len(head) - 1
        windows = []
        for start, end in cuts(len(tokens), room, stride):
            ids = np.array([*head, *tokens.ids[start:end].tolist(), self.tokenizer.sep], np.int32)
            types = np.zeros_like(ids)
            types[len(head) :] = segment
            windows.append(Window(ids, types, len(head), start, end))
        return Encoded(tokens, tuple(windows))


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
