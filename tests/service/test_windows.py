"""Windows cover every token, and spans are exact in the caller's text whatever Unicode is in it."""

import json
import tempfile
from itertools import pairwise
from pathlib import Path
from random import Random
from unicodedata import category

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service import question_answering, token_classification
from service.errors import InvalidRequestError, StartupError
from service.schemas import QuestionAnsweringParameters, QuestionInput, TokenClassificationParameters
from service.windows import Encoded, TextTokenizer, Tokens, Window, Windows, cuts, merged, with_marks
from tests.random_artifact import tokenizer
from tests.service import fake

with tempfile.TemporaryDirectory() as folder:
    TOKENIZER = fake.text_tokenizer(Path(folder))
    ASKED, _ = fake.model(Path(folder), "question-answering", window=24)
    TAGGED, _ = fake.model(Path(folder), "token-classification", window=16)

# Letters, spaces and punctuation that occur in real texts, and everything else that can be encoded as UTF-8.
HARD = "aB é ß\u0301\u0000\r\n\t\u200b\u200d\u202e😀👨‍👩‍👧🇩🇪שלוםمرحبا北京한국ﬁİ\ufffd\ufeff[SEP]##-.,'हिन्दी"
TEXTS = st.text(st.one_of(st.sampled_from(HARD), st.characters(codec="utf-8")), max_size=80)


def tokens(count: int) -> Tokens:
    numbers = np.arange(count, dtype=np.int32)
    return Tokens(numbers + 10, np.stack([numbers, numbers + 1], axis=1), numbers)


@given(st.integers(0, 400), st.integers(1, 60), st.data())
def test_cuts_cover_every_token_and_overlap_by_the_stride(count: int, room: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(0, room - 1))
    spans = cuts(count, room, stride)
    assert [i for i in range(count) if not any(start <= i < end for start, end in spans)] == []
    assert all(0 < end - start <= room for start, end in spans)
    assert all(before[1] - after[0] == stride for before, after in pairwise(spans))
    assert (spans[-1][1] if spans else 0) == count


@given(st.integers(0, 200), st.integers(3, 64), st.integers(0, 63))
def test_single_windows_hold_the_text_between_cls_and_sep(count: int, length: int, stride: int) -> None:
    encoded = Windows(TOKENIZER, length, min(stride, length - 1)).single(tokens(count))
    covered = set()
    for window in encoded.windows:
        assert len(window.ids) <= length
        assert (window.ids[0], window.ids[-1]) == (TOKENIZER.cls, TOKENIZER.sep)
        assert (
            window.content(window.ids[:, None])[:, 0].tolist() == encoded.tokens.ids[window.start : window.end].tolist()
        )
        assert not window.types.any()
        covered |= set(range(window.start, window.end))
    assert covered == set(range(count))


@given(st.integers(1, 14), st.integers(1, 200), st.integers(0, 31))
def test_pair_windows_hold_the_whole_question_and_cover_the_context(asked: int, count: int, stride: int) -> None:
    question = tokens(asked)
    encoded = Windows(TOKENIZER, 32, stride).pair(question, tokens(count), None, "/inputs")
    covered = set()
    for window in encoded.windows:
        assert len(window.ids) <= 32
        assert window.ids[1 : asked + 1].tolist() == question.ids.tolist()
        assert window.types.tolist() == [0] * (asked + 2) + [1] * (len(window.ids) - asked - 2)
        covered |= set(range(window.start, window.end))
    assert covered == set(range(count))


def test_a_question_over_half_the_window_is_refused_with_the_limit() -> None:
    with pytest.raises(InvalidRequestError) as raised:
        Windows(TOKENIZER, 32, 8).pair(tokens(15), tokens(5), None, "/inputs/3")
    (field,) = raised.value.fields
    assert (field.pointer, field.value, field.limit) == ("/inputs/3/question", "15", "14")


def test_a_stride_that_leaves_no_progress_is_refused_with_the_limit() -> None:
    windows = Windows(TOKENIZER, 32, 8)
    assert len(windows.pair(tokens(9), tokens(30), 19, "/inputs").windows) == 11
    with pytest.raises(InvalidRequestError) as raised:
        windows.pair(tokens(9), tokens(30), 20, "/inputs")
    (field,) = raised.value.fields
    assert (field.pointer, field.value, field.limit) == ("/parameters/stride", "20", "19")


@settings(deadline=None, max_examples=300)
@given(TEXTS)
@example("cafe\u0301s x")
@example("a\x00b\r\nc")
@example("[CLS] [SEP] [PAD]")
@example("x" * 150)
def test_spans_are_code_points_of_the_callers_text(text: str) -> None:
    found = TOKENIZER(text)
    assert len(found.ids) == len(found.spans) == len(found.words)
    assert not set(found.ids.tolist()) & {TOKENIZER.cls, TOKENIZER.sep}
    assert all(0 <= start < end <= len(text) for start, end in found.spans)
    assert (np.diff(found.spans[:, 0]) >= 0).all()
    assert (np.diff(found.words) >= 0).all()
    covered = {place for start, end in found.spans for place in range(start, end)}
    assert [place for place, c in enumerate(text) if c.isascii() and c.isalnum() and place not in covered] == []


@settings(deadline=None, max_examples=300)
@given(TEXTS, st.integers(6, 24), st.integers(0, 20))
@example("👨‍👩‍👧 e\u0301 שלום\r\n\x00\u202eend\u202c " * 8, 12, 3)
def test_every_character_of_a_context_is_read_in_some_window(text: str, length: int, stride: int) -> None:
    question = TOKENIZER("who")
    windows = Windows(TOKENIZER, length, min(stride, length - 3))
    for encoded in (windows.pair(question, TOKENIZER(text), None, "/inputs"), windows.single(TOKENIZER(text))):
        read = set()
        for window in encoded.windows:
            assert len(window.ids) <= length
            for start, end in encoded.tokens.spans[window.start : window.end]:
                read |= set(range(start, end))
        # What no token stands for: spaces, control and format characters, marks, and the sign of a decoding error.
        left = {text[place] for place in range(len(text)) if place not in read}
        assert {c for c in left if category(c)[0] not in "ZCM" and c != "\ufffd"} == set()


@settings(deadline=None, max_examples=200)
@given(TEXTS.filter(lambda text: len(TOKENIZER(text)) > 0), st.integers(1, 12), st.randoms(use_true_random=False))
@example("🎉 cafe\u0301 👨‍👩‍👧 שלום हिन्दी\r\nx\x00y", 6, Random(0))
def test_offsets_of_answers_and_entities_round_trip(text: str, longest: int, random: Random) -> None:
    logits = np.random.default_rng(random.randrange(1 << 30))
    asked = QuestionInput(question="who", context=text)
    wanted = QuestionAnsweringParameters(top_k=5, max_answer_tokens=longest)
    encoded = question_answering.encode(ASKED, asked, wanted, "/inputs")
    scores = [logits.standard_normal((len(w.ids), 2), np.float32) * 4 for w in encoded.windows]
    answers = question_answering.decode(ASKED, asked, encoded, scores, wanted)
    options = TokenClassificationParameters(ignore_labels=[])
    encoded = token_classification.encode(TAGGED, text, options, "/inputs")
    scores = [logits.standard_normal((len(w.ids), 7), np.float32) * 4 for w in encoded.windows]
    entities = token_classification.decode(TAGGED, text, encoded, scores, options)
    assert answers and entities
    for found, part in [*((a, a.answer) for a in answers), *((e, e.word) for e in entities)]:
        back = json.loads(found.model_dump_json())
        assert text[back["start"] : back["end"]] == part == back.get("answer", back.get("word"))
        assert part and not part[0].isspace() and not part[-1].isspace()
        # A letter is never cut off from the marks that belong to it.
        assert found.end == len(text) or category(text[found.end])[0] != "M"
    assert sum(answer.score for answer in answers) <= 1 + 1e-9
    assert all(before.end <= after.start for before, after in pairwise(entities))


@settings(deadline=None)
@given(TEXTS, TEXTS)
def test_what_stands_before_moves_the_spans_and_nothing_else(before: str, text: str) -> None:
    alone, behind = TOKENIZER(text), TOKENIZER(f"{before} . {text}")
    count = len(alone)
    assert count == 0 or behind.ids[-count:].tolist() == alone.ids.tolist()
    assert count == 0 or (behind.spans[-count:] - len(before) - 3).tolist() == alone.spans.tolist()


def test_marks_behind_a_word_belong_to_it() -> None:
    assert with_marks("cafe\u0301 x", 4) == 5
    assert with_marks("cafe x", 4) == 4
    assert with_marks("में", 1) == 3


def test_a_token_takes_its_row_from_the_window_where_it_is_farther_from_an_edge() -> None:
    encoded = Windows(TOKENIZER, 8, 3).single(tokens(9))
    assert [(window.start, window.end) for window in encoded.windows] == [(0, 6), (3, 9)]
    rows = merged(encoded, [np.full((8, 1), number, np.float32) for number in range(2)])
    # Token 4 is at place 5 of 0..7 in the first window and at 2 in the second, 2 from an edge in both.
    assert rows[:, 0].tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]


@given(st.integers(1, 120), st.integers(4, 30), st.data())
def test_merged_rows_are_rows_of_the_token_itself(count: int, length: int, data: st.DataObject) -> None:
    encoded = Windows(TOKENIZER, length, data.draw(st.integers(0, length - 1))).single(tokens(count))
    rows = merged(encoded, [window.ids[:, None].astype(np.float32) for window in encoded.windows])
    assert rows[:, 0].tolist() == encoded.tokens.ids.tolist()


def test_merged_of_nothing_is_nothing() -> None:
    assert merged(Encoded(tokens(0), ()), []).shape[0] == 0


def test_content_skips_what_is_not_the_text() -> None:
    window = Window(np.array([1, 2, 3, 4, 5], np.int32), np.zeros(5, np.int32), 2, 7, 9)
    assert window.content(np.arange(5, dtype=np.float32)[:, None])[:, 0].tolist() == [2, 3]


def test_files_that_are_no_tokenizer_of_this_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(StartupError, match=r"tokenizer\.json is no tokenizer"):
        TextTokenizer(path, 10)
    tokenizer().save(str(path))
    with pytest.raises(StartupError, match="the model only 10 embeddings"):
        TextTokenizer(path, 10)
    path.write_text(path.read_text().replace("[CLS]", "[CSL]"))
    with pytest.raises(StartupError, match=r"no \[CLS\] token"):
        TextTokenizer(path, 1000)
