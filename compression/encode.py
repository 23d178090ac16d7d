"""Examples to windows of tokens with training targets: tokenization and windowing, no torch."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from unicodedata import category

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from compression.examples import DataError, Example, QuestionExample, TaggedExample, TextExample, tags_of
from compression.recipe import Task

log = logging.getLogger("sparselane")

# Positions that carry no target; the value that torch's cross-entropy skips.
IGNORED = -100
# A question is cut to this many tokens, as transformers' pipeline documents (max_question_len).
MAX_QUESTION_TOKENS = 64

Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Window:
    """One sequence for the encoder, of T tokens.

    `ids`, `types`: int32 [T]. `targets`: int32, [1] class, or [2] first and last answer token, or [T] tag (IGNORED
    where a token starts no piece of a word); multi-label: float32 [C], 1 where a label holds. `places`: int32; question
    answering [T, 5] of each context token: its code points, those of its word, its number, else -1; token
    classification [T, 1] the word that a token starts, -1 elsewhere; else [0]. `cut`: how many tokens of a pair, or of
    a question, found no room.
    """

    example: int
    ids: Ints
    types: Ints
    targets: Ints | NDArray[np.float32]
    places: Ints
    cut: int = 0


@dataclass(frozen=True)
class Encoder:
    """Cuts the examples of a task into windows; `tokenizer` must neither pad nor truncate, see `prepare_tokenizer`."""

    tokenizer: Tokenizer
    task: Task
    uses_types: bool

    def windows(self, examples: Sequence[Example]) -> list[Window]:
        """Return the windows of all examples, in order; every token of a context, text or sentence is in one.

        A pair has one window; how many pairs, or questions, had to be cut is logged.
        """
        encode = {
            "question-answering": self._question,
            "text-classification": self._pair if self.task.pairs else self._text,
            "token-classification": self._sentence,
        }[self.task.name]
        windows = [window for number, example in enumerate(examples) for window in encode(number, example)]
        if cut := {window.example: window.cut for window in windows if window.cut}:
            if self.task.pairs:
                what = f"pairs do not fit task.window = {self.task.window}: their longer text was"
            else:
                what = f"questions have more than {self.most_question_tokens} tokens: they were"
            log.warning("%d of %d %s cut, %d tokens in all", len(cut), len(examples), what, sum(cut.values()))
        return windows

    def unlabelled(self, texts: Sequence[str]) -> list[Window]:
        """Return the windows of single texts without labels: as for training, but all targets are IGNORED."""
        per_token = self.task.name == "token-classification"
        result = []
        for number, text in enumerate(texts):
            tokens = self.tokenizer.encode(text, add_special_tokens=False).ids
            for start, end in _cuts(len(tokens), self.task.window - 2, self.task.stride):
                ids = np.array([self._cls, *tokens[start:end], self._sep], np.int32)
                places = np.full((len(ids) if per_token else 0, 1), -1, np.int32)
                result.append(Window(number, ids, np.zeros_like(ids), self._no_target(len(ids)), places))
        return result

    def _no_target(self, tokens: int) -> Ints | NDArray[np.float32]:
        if self.task.multi_label:
            return np.full(len(self.task.labels), IGNORED, np.float32)
        return np.full(tokens if self.task.name == "token-classification" else 1, IGNORED, np.int32)

    def _question(self, number: int, example: Example) -> list[Window]:
        assert isinstance(example, QuestionExample)
        question = self.tokenizer.encode(example.question, add_special_tokens=False).ids
        cut = max(0, len(question) - self.most_question_tokens)
        question = question[: self.most_question_tokens]
        context, places_of = self._context(example.context)
        room = self.task.window - len(question) - 3
        answer = _token_span(places_of, *example.answers[0]) if example.answers else (-1, -1)
        result = []
        for start, end in _cuts(len(context.ids), room, min(self.task.stride, room // 2)):
            head = [self._cls, *question, self._sep]
            ids = np.array([*head, *context.ids[start:end], self._sep], np.int32)
            types = np.zeros_like(ids)
            types[len(head) :] = 1 if self.uses_types else 0
            places = np.full((len(ids), places_of.shape[1]), -1, np.int32)
            places[len(head) : -1] = places_of[start:end]
            inside = start <= answer[0] and answer[1] < end
            # A window without the answer is taught to point at [CLS], as in SQuAD fine-tuning of BERT.
            targets = np.array(answer, np.int32) + len(head) - start if inside else np.zeros(2, np.int32)
            result.append(Window(number, ids, types, targets, places, cut))
        return result

    @property
    def most_question_tokens(self) -> int:
        """A longer question is cut: it leaves half a window to the context, as in the service, which refuses others."""
        return min(MAX_QUESTION_TOKENS, (self.task.window - 3) // 2)

    @cached_property
    def _context(self) -> Callable[[str], tuple[Encoding, Ints]]:
        """Tokenizes a context, and keeps the last: in files as published its questions follow each other."""

        @lru_cache(1)
        def encoded(text: str) -> tuple[Encoding, Ints]:
            context = self.tokenizer.encode(text, add_special_tokens=False)
            spans, words = np.array(context.offsets, np.int32).reshape(-1, 2), np.array(context.word_ids, np.int32)
            first, last = np.searchsorted(words, words, "left"), np.searchsorted(words, words, "right") - 1
            ends = np.array([past_marks(text, end) for end in spans[:, 1].tolist()], np.int32)[last]
            return context, np.column_stack((spans, spans[first, 0], ends, np.arange(len(words), dtype=np.int32)))

        return encoded

    def _text(self, number: int, example: Example) -> list[Window]:
        assert isinstance(example, TextExample)
        tokens = self.tokenizer.encode(example.text, add_special_tokens=False).ids
        result = []
        for start, end in _cuts(len(tokens), self.task.window - 2, self.task.stride):
            ids = np.array([self._cls, *tokens[start:end], self._sep], np.int32)
            result.append(Window(number, ids, np.zeros_like(ids), self._target(example), np.empty(0, np.int32)))
        return result

    def _pair(self, number: int, example: Example) -> list[Window]:
        assert isinstance(example, TextExample) and example.pair is not None
        texts = [self.tokenizer.encode(text, add_special_tokens=False).ids for text in (example.text, example.pair)]
        first, second = _longest_first(len(texts[0]), len(texts[1]), self.task.window - 3)
        cut = len(texts[0]) + len(texts[1]) - first - second
        ids = np.array([self._cls, *texts[0][:first], self._sep, *texts[1][:second], self._sep], np.int32)
        types = np.zeros_like(ids)
        types[first + 2 :] = 1 if self.uses_types else 0
        return [Window(number, ids, types, self._target(example), np.empty(0, np.int32), cut)]

    def _target(self, example: TextExample) -> Ints | NDArray[np.float32]:
        if not self.task.multi_label:
            return np.array([example.label], np.int32)
        target = np.zeros(len(self.task.labels), np.float32)
        target[np.array(example.label, np.intp)] = 1
        return target

    def _sentence(self, number: int, example: Example) -> list[Window]:
        assert isinstance(example, TaggedExample)
        numbers = {tag: i for i, tag in enumerate(tags_of(self.task.labels))}
        tokens: list[int] = []
        targets: list[int] = []
        starts: list[int] = []
        for place, (word, tag) in enumerate(zip(example.words, example.tags, strict=True)):
            encoding = self.tokenizer.encode(word, add_special_tokens=False)
            pieces: list[int | None] = encoding.word_ids
            inside = f"I-{tag[2:]}" if tag.startswith("B-") else tag
            for i, token in enumerate(encoding.ids):
                tokens.append(token)
                starts.append(place if i == 0 else -1)
                # "all-rounder" is one word here but three pieces to the tokenizer, and plain text at serving time has
                # only pieces: each piece's first token carries the tag, I- after the first piece.
                first = i == 0 or pieces[i] != pieces[i - 1]
                targets.append(numbers[tag if i == 0 else inside] if first else IGNORED)
        result = []
        for start, end in _cuts(len(tokens), self.task.window - 2, self.task.stride):
            ids = np.array([self._cls, *tokens[start:end], self._sep], np.int32)
            target = np.array([IGNORED, *targets[start:end], IGNORED], np.int32)
            places = np.array([-1, *starts[start:end], -1], np.int32)[:, None]
            result.append(Window(number, ids, np.zeros_like(ids), target, places))
        return result

    @property
    def _cls(self) -> int:
        return special_id(self.tokenizer, "[CLS]")

    @property
    def _sep(self) -> int:
        return special_id(self.tokenizer, "[SEP]")


def special_id(tokenizer: Tokenizer, token: str) -> int:
    """Return the id of a special token. Raises DataError where the vocabulary has none: not a BERT tokenizer."""
    number = tokenizer.token_to_id(token)
    if number is None:
        raise DataError(f"the tokenizer has no {token} token; only BERT-style WordPiece vocabularies are supported")
    return int(number)


def prepare_tokenizer(tokenizer: Tokenizer, vocabulary: int) -> Tokenizer:
    """Turn off padding and truncation, and check the vocabulary against the model's number of embeddings.

    Raises:
        DataError: more tokens than embeddings, or ordinary words map to [UNK] (a vocabulary that was not loaded).
    """
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if tokenizer.get_vocab_size() > vocabulary:
        raise DataError(
            f"the tokenizer has {tokenizer.get_vocab_size()} tokens, the model only {vocabulary} embeddings"
        )
    unknown = special_id(tokenizer, "[UNK]")
    if all(token == unknown for token in tokenizer.encode("a e i o n", add_special_tokens=False).ids):
        raise DataError("the tokenizer maps plain letters to [UNK]: its vocabulary was not loaded")
    return tokenizer


def _cuts(length: int, room: int, stride: int) -> list[tuple[int, int]]:
    """Cover `length` tokens with windows of at most `room`, neighbours sharing `stride`; one window even if empty."""
    cuts = [(0, min(room, length))]
    while cuts[-1][1] < length:
        start = cuts[-1][1] - stride
        cuts.append((start, min(start + room, length)))
    return cuts


def past_marks(text: str, end: int) -> int:
    """Return `end` moved behind combining marks there, as the service does: tokenizers leave accents out."""
    while end < len(text) and category(text[end])[0] == "M":
        end += 1
    return end


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Shorten the longer of two texts, then both evenly, until they fit: transformers' `longest_first` truncation."""
    if first + second <= room:
        return first, second
    if first > second:
        second, first = _longest_first(second, first, room)
        return first, second
    first = min(first, room // 2)
    return first, room - first


def _token_span(offsets: Ints, start: int, text: str) -> tuple[int, int]:
    """First and last token that overlap the answer's code points; (-1, -1) where no token does."""
    inside = np.flatnonzero((offsets[:, 1] > start) & (offsets[:, 0] < start + len(text)))
    return (int(inside[0]), int(inside[-1])) if len(inside) else (-1, -1)
