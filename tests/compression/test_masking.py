import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compression.encode import IGNORED, special_id
from compression.masking import FEWEST_TOKENS, MaskedWindows, cut_segments
from compression.recipe import LanguageTask
from compression.text import Corpus
from tests.compression import tiny

TOKENIZER = tiny.tokenizer()
CLS, SEP, MASK = (special_id(TOKENIZER, token) for token in ("[CLS]", "[SEP]", "[MASK]"))
STOP = TOKENIZER.token_to_id(".")
LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=8)


def corpus_of(lengths: list[int], seed: int = 0) -> Corpus:
    """Documents of ordinary tokens with a full stop now and then."""
    random = np.random.default_rng(seed)
    tokens = random.integers(10, 60, sum(lengths)).astype(np.uint16)
    tokens[random.random(len(tokens)) < 0.1] = STOP
    return Corpus(tokens, np.concatenate(([0], np.cumsum(lengths))))


def task(window: int = 32, next_sentence: bool = False) -> LanguageTask:
    return LanguageTask("masked-language-modelling", window, next_sentence)


def cut(corpus: Corpus, one: LanguageTask, short: float = 0.1, seed: int = 0) -> np.ndarray:
    return cut_segments(corpus, np.arange(corpus.documents), one, short, TOKENIZER, seed)


@given(lengths=LENGTHS, window=st.integers(16, 64), seed=st.integers(0, 9))
def test_windows_cover_documents_in_order_and_never_cross_their_ends(
    lengths: list[int], window: int, seed: int
) -> None:
    corpus = corpus_of(lengths)
    rows = cut(corpus, task(window), seed=seed)
    read = [place for start, stop, *_ in rows.tolist() for place in range(start, stop)]
    left_out = set(range(len(corpus.tokens))) - set(read)
    assert read == sorted(set(read))
    for start, end in zip(corpus.starts[:-1], corpus.starts[1:], strict=True):
        rest = sorted(left_out & set(range(start, end)))
        assert len(rest) < FEWEST_TOKENS and rest == list(range(end - len(rest), end))
        assert not any(a < end < b for a, b, *_ in rows.tolist())
    assert (rows[:, 1] - rows[:, 0] <= window - 2).all() and (rows[:, 4] == IGNORED).all()


def test_a_tenth_of_the_windows_is_short() -> None:
    rows = cut(corpus_of([200_000]), task(128))
    assert np.mean(rows[:, 1] - rows[:, 0] < 126) == pytest.approx(0.1, abs=0.02)


@given(lengths=st.lists(st.integers(1, 300), min_size=2, max_size=8), seed=st.integers(0, 9))
def test_a_pair_follows_or_comes_from_another_document(lengths: list[int], seed: int) -> None:
    corpus = corpus_of(lengths)
    for a_start, a_end, b_start, b_end, label in cut(corpus, task(40, True), seed=seed).tolist():
        assert a_start < a_end and b_start < b_end and a_end - a_start + b_end - b_start <= 37
        home, other = (int(np.searchsorted(corpus.starts, place, "right")) for place in (a_start, b_start))
        if label == 0:
            assert b_start == a_end and home == other
        else:
            assert label == 1 and home != other
        for start, end in ((a_start, a_end), (b_start, b_end)):
            assert end <= corpus.starts[np.searchsorted(corpus.starts, start, "right")]


def test_half_of_the_pairs_follow_and_the_first_part_ends_with_a_sentence() -> None:
    corpus = corpus_of([5_000] * 20)
    rows = cut(corpus, task(64, True))
    assert rows[:, 4].mean() == pytest.approx(0.5, abs=0.05)
    assert np.mean(corpus.tokens[rows[:, 1] - 1] == STOP) > 0.9


def test_where_the_second_part_begins_does_not_tell_whether_it_follows() -> None:
    corpus = corpus_of([5_000] * 20)
    rows = cut(corpus, task(64, True))
    begins = corpus.tokens[rows[:, 2] - 1] == STOP
    following, other = (begins[rows[:, 4] == label].mean() for label in (0, 1))
    assert following > 0.9 and other == pytest.approx(following, abs=0.03)


@pytest.mark.parametrize("next_sentence", [False, True])
def test_a_limit_gives_the_first_windows_of_all(next_sentence: bool) -> None:
    corpus, one = corpus_of([300] * 40), task(40, next_sentence)
    every = cut(corpus, one)
    assert every.dtype == np.int64 and len(every) > 50
    for limit, expected in ((0, every), (7, every[:7]), (10_000, every)):
        assert np.array_equal(cut_segments(corpus, np.arange(40), one, 0.1, TOKENIZER, 0, limit), expected)


def windows(next_sentence: bool = False, seed: int = 5, lengths: tuple[int, ...] = (3000, 3000)) -> MaskedWindows:
    corpus = corpus_of(list(lengths))
    return MaskedWindows(corpus, cut(corpus, task(64, next_sentence)), TOKENIZER, 0.15, seed)


@pytest.mark.parametrize("next_sentence", [False, True])
def test_a_window_is_its_tokens_with_special_tokens_types_and_label(next_sentence: bool) -> None:
    made = windows(next_sentence)
    for number, window in enumerate(made):
        a_start, a_end, b_start, b_end, label = made.segments[number].tolist()
        whole = np.where(window.targets == IGNORED, window.ids, window.targets)
        whole[0] = CLS
        first, second = made.corpus.tokens[a_start:a_end].tolist(), made.corpus.tokens[b_start:b_end].tolist()
        assert whole.tolist() == [CLS, *first, SEP, *([*second, SEP] if next_sentence else [])]
        assert window.types.tolist() == [0] * (len(first) + 2) + [1] * (len(second) + 1) * next_sentence
        assert window.targets[0] == label and window.ids[0] == CLS
        assert len(window.ids) == made.lengths[number] <= 64
        assert ((window.ids == SEP) & (window.targets != IGNORED)).sum() <= 1  # only ever as a random replacement


def test_fifteen_percent_are_guessed_of_them_80_10_10() -> None:
    made = windows(lengths=(60_000, 60_000))
    ids = np.concatenate([w.ids[1:] for w in made])
    targets = np.concatenate([w.targets[1:] for w in made])
    guessed = targets != IGNORED
    assert guessed[ids != SEP].mean() == pytest.approx(0.15, abs=0.005)
    assert np.mean(ids[guessed] == MASK) == pytest.approx(0.8, abs=0.01)
    # One of about a hundred random tokens is the token itself.
    assert np.mean(ids[guessed] == targets[guessed]) == pytest.approx(0.1, abs=0.01)


def test_masks_are_a_function_of_seed_and_number_and_change_with_the_epoch() -> None:
    made, same, other = windows(), windows(), windows(seed=6)
    count = len(made)
    for number in (0, 7, count + 7, 1000 * count + 7):
        assert np.array_equal(made[number].ids, same[number].ids)
    assert made[7].example == made[count + 7].example == 7
    assert not np.array_equal(made[7].ids, made[count + 7].ids)
    assert not np.array_equal(made[7].ids, other[7].ids)


def test_at_least_one_token_of_a_window_is_guessed() -> None:
    corpus = corpus_of([FEWEST_TOKENS] * 300)
    made = MaskedWindows(corpus, cut(corpus, task()), TOKENIZER, 0.01, 0)
    assert all((window.targets[1:] != IGNORED).any() for window in made)
