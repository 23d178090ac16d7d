import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordPiece

from compression.encode import IGNORED, Encoder, prepare_tokenizer
from compression.examples import DataError, QuestionExample, TaggedExample, TextExample
from compression.recipe import Task
from tests.compression import tiny

TOKENIZER = tiny.tokenizer()
WORDS = st.lists(st.sampled_from([*tiny.POSITIVE, *tiny.PLACES, "all-rounder", "xyz", "?"]), max_size=60)


def encoder(name: str, window: int = 24, stride: int = 6, labels: tuple[str, ...] = ("PER", "LOC")) -> Encoder:
    return Encoder(TOKENIZER, Task(name, labels=labels, window=window, stride=stride), uses_types=True)


@given(words=WORDS, window=st.integers(16, 40), stride=st.integers(0, 7))
def test_windows_of_a_text_cover_it_in_order_with_the_stride(words: list[str], window: int, stride: int) -> None:
    text = " ".join(words)
    whole = TOKENIZER.encode(text, add_special_tokens=False).ids
    windows = encoder("text-classification", window, stride).windows([TextExample(text, 1)])
    read = windows[0].ids[1:-1].tolist()
    for one in windows[1:]:
        inner = one.ids[1:-1].tolist()
        assert stride == 0 or read[-stride:] == inner[:stride]
        read += inner[stride:]
    assert read == whole
    assert all(len(one.ids) <= window and one.targets.tolist() == [1] for one in windows)


@given(words=WORDS.filter(bool), at=st.integers(0, 59), window=st.integers(24, 40))
def test_a_question_finds_its_answer_in_every_window_that_holds_it(words: list[str], at: int, window: int) -> None:
    at %= len(words)
    context = " ".join(words)
    start = len(" ".join(words[:at])) + (at > 0)
    example = QuestionExample("q", "where does anna live?", context, ((start, words[at]),))
    windows = encoder("question-answering", window).windows([example])
    found = 0
    for one in windows:
        first, last = one.targets
        if (first, last) != (0, 0):
            found += 1
            assert context[one.places[first, 0] : one.places[last, 1]] == words[at]
        in_context = one.places[:, 0] >= 0
        assert one.types[in_context].all() and not one.types[: in_context.argmax()].any()
    covered = {int(p) for one in windows for p in one.places[one.places[:, 0] >= 0, 0]}
    assert covered == {offset[0] for offset in TOKENIZER.encode(context, add_special_tokens=False).offsets}
    assert found >= 1 or len(words[at]) > 3  # only an answer of several tokens may be cut by every window


@given(first=WORDS, second=WORDS, window=st.integers(16, 40), types=st.booleans())
def test_a_pair_is_one_window_and_what_is_cut_is_counted(
    first: list[str], second: list[str], window: int, types: bool
) -> None:
    task = Task("text-classification", labels=("no", "yes"), window=window, stride=4, pairs=True)
    texts = " ".join(first), " ".join(second)
    (one,) = Encoder(TOKENIZER, task, types).windows([TextExample(texts[0], 1, texts[1])])
    whole = [TOKENIZER.encode(text, add_special_tokens=False).ids for text in texts]
    assert len(one.ids) + one.cut == len(whole[0]) + len(whole[1]) + 3
    assert one.cut == 0 or len(one.ids) == window
    end = one.ids.tolist().index(TOKENIZER.token_to_id("[SEP]"))
    read = one.ids[1:end].tolist(), one.ids[end + 1 : -1].tolist()
    assert all(part == text[: len(part)] for part, text in zip(read, whole, strict=True))
    assert one.types.tolist() == [0] * (end + 1) + [int(types)] * (len(read[1]) + 1)
    assert one.targets.tolist() == [1]


def test_pairs_that_do_not_fit_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    task = Task("text-classification", labels=("no", "yes"), window=16, stride=4, pairs=True)
    encode = Encoder(TOKENIZER, task, uses_types=True)
    encode.windows([TextExample("the film", 0, "a story")])
    assert not caplog.messages
    encode.windows([TextExample("the film", 0, "a story"), TextExample("the film", 0, "a story " * 20)])
    expected = "1 of 2 pairs do not fit task.window = 16: their longer text was cut, 29 tokens in all"
    assert caplog.messages == [expected]


def test_label_sets_are_a_yes_or_no_for_every_label() -> None:
    task = Task("text-classification", labels=("a", "b", "c"), window=16, stride=4, multi_label=True)
    windows = Encoder(TOKENIZER, task, uses_types=True).windows([TextExample("film", (0, 2)), TextExample("film", ())])
    assert [window.targets.tolist() for window in windows] == [[1, 0, 1], [0, 0, 0]]
    assert {window.targets.dtype for window in windows} == {np.dtype(np.float32)}


def test_every_piece_of_a_word_carries_its_tag_and_only_its_first_token() -> None:
    example = TaggedExample(("Anna-Ben", "went", "oslox"), ("B-PER", "O", "B-LOC"))
    (window,) = encoder("token-classification").windows([example])
    tokens = [TOKENIZER.id_to_token(int(i)) for i in window.ids]
    assert tokens == ["[CLS]", "anna", "-", "ben", "went", "oslo", "##x", "[SEP]"]
    assert window.targets.tolist() == [IGNORED, 1, 2, 2, 0, 3, IGNORED, IGNORED]
    assert window.places[:, 0].tolist() == [-1, 0, -1, -1, 1, 2, -1, -1]


def test_long_questions_are_cut_but_the_context_never() -> None:
    example = QuestionExample("q", "a " * 500, "anna lives in oslo", ((14, "oslo"),))
    windows = encoder("question-answering", window=80).windows([example])
    assert max(len(one.ids) for one in windows) <= 80
    assert (windows[0].places[:, 0] >= 0).sum() == 4


@pytest.mark.parametrize("window", [16, 64, 67])
def test_a_question_leaves_half_of_a_small_window_and_cuts_are_logged(
    window: int, caplog: pytest.LogCaptureFixture
) -> None:
    long = QuestionExample("q", "a " * 500, "anna lives in oslo " * 9, ((14, "oslo"),))
    short = QuestionExample("r", "who", "anna lives in oslo", ((14, "oslo"),))
    windows = encoder("question-answering", window=window).windows([long, short, long])
    assert max(len(one.ids) for one in windows) <= window
    seen = {int(place) for one in windows if one.example == 0 for place in one.places[:, 0] if place >= 0}
    assert len(seen) == 4 * 9
    limit = (window - 3) // 2
    assert caplog.messages == [
        f"2 of 3 questions have more than {limit} tokens: they were cut, {2 * (500 - limit)} tokens in all"
    ]


def test_names_of_groups_may_look_like_prefixes() -> None:
    example = TaggedExample(("Anna-Ben", "oslox"), ("B-JOB-TITLE", "I-JOB-TITLE"))
    (window,) = encoder("token-classification", labels=("JOB-TITLE",)).windows([example])
    assert window.targets.tolist() == [IGNORED, 1, 2, 2, 2, IGNORED, IGNORED]


def test_a_vocabulary_that_was_not_loaded_is_refused() -> None:
    empty = Tokenizer(WordPiece({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2}, unk_token="[UNK]"))
    with pytest.raises(DataError, match="plain letters"):
        prepare_tokenizer(empty, 100)
    with pytest.raises(DataError, match="only 10 embeddings"):
        prepare_tokenizer(tiny.tokenizer(), 10)
    with pytest.raises(DataError, match=r"no \[CLS\]"):
        Encoder(Tokenizer(WordPiece({"[UNK]": 0}, unk_token="[UNK]")), Task("text-classification"), True).windows(
            [TextExample("a", 0)]
        )


def test_padding_and_truncation_of_a_checkpoint_are_turned_off() -> None:
    cut = tiny.tokenizer()
    cut.enable_truncation(4)
    cut.enable_padding(length=128)
    whole = prepare_tokenizer(cut, 1000).encode("the film was good and the story was bad", add_special_tokens=False)
    assert len(whole.ids) == 9


def test_an_empty_text_is_one_window_of_two_tokens() -> None:
    (window,) = encoder("text-classification").windows([TextExample("", 0)])
    assert np.array_equal(window.ids, [TOKENIZER.token_to_id("[CLS]"), TOKENIZER.token_to_id("[SEP]")])
