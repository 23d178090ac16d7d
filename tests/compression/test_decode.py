import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from compression.decode import Span, best_classes, best_spans, best_tags, label_sets
from compression.encode import Encoder, Window
from compression.examples import QuestionExample, TaggedExample, tags_of
from compression.golden import group_entities, split_words
from compression.recipe import Task
from tests.compression import tiny

TOKENIZER = tiny.tokenizer()


@given(seed=st.integers(0, 999), words=st.integers(1, 40), longest=st.integers(1, 12))
def test_best_span_equals_brute_force_over_all_windows(seed: int, words: int, longest: int) -> None:
    random = np.random.default_rng(seed)
    context = " ".join(random.choice(tiny.PLACES, words))
    question = QuestionExample("q", "where ?", context, ((0, ""),))
    task = Task("question-answering", window=20, stride=4, max_answer_tokens=longest)
    windows = Encoder(TOKENIZER, task, uses_types=True).windows([question])
    logits = [random.normal(size=(len(w.ids), 2)).astype(np.float32) for w in windows]
    best = max(
        (float(values[s, 0] + values[e, 1]), int(w.places[s, 0]), int(w.places[e, 1]))
        for w, values in zip(windows, logits, strict=True)
        for s in range(len(w.ids))
        for e in range(s, min(s + longest, len(w.ids)))
        if w.places[s, 0] >= 0 and w.places[e, 0] >= 0
    )
    assert best_spans(windows, logits, [question], longest)[0][:2] == best[1:]


def test_an_answer_grows_to_whole_words() -> None:
    question = QuestionExample("q", "who ?", "annax went", ((0, ""),))
    task = Task("question-answering", window=20, stride=4)
    (window,) = Encoder(TOKENIZER, task, uses_types=True).windows([question])
    logits = np.zeros((len(window.ids), 2), np.float32)
    logits[4] = 9.0  # [CLS] who ? [SEP] anna ##x went [SEP]
    span = best_spans([window], [logits], [question], 30)[0]
    assert question.context[span.start : span.end] == "annax"
    assert span.margin > 0


def spans_of(context: str, first: str, last: str) -> str:
    """The answer where the tokens that hold these characters are the likeliest ends."""
    question = QuestionExample("q", "who ?", context, ((0, ""),))
    task = Task("question-answering", window=60, stride=4)
    (window,) = Encoder(TOKENIZER, task, uses_types=True).windows([question])
    logits = np.zeros((len(window.ids), 2), np.float32)
    for side, character in enumerate((first, last)):
        place = context.index(character)
        (tokens,) = np.nonzero((window.places[:, 0] <= place) & (place < window.places[:, 1]))
        logits[tokens[0], side] = 9.0
    span = best_spans([window], [logits], [question], 30)[0]
    return context[span.start : span.end]


def test_words_are_the_tokenizers_and_end_behind_their_marks() -> None:
    """As the service grows answers: characters of Chinese are words, and an accent of its own belongs to its letter."""
    assert spans_of("我住在北京市中心", "北", "京") == "北京"
    assert spans_of("maria jose\u0301 went", "j", "e") == "jose\u0301"
    assert split_words(TOKENIZER, "jose\u0301 went") == [(0, 5), (6, 10)]


def test_classes_are_the_best_logit_averaged_by_tokens() -> None:
    lengths = ((0, 3), (0, 12), (1, 2))  # example, tokens with the two special ones
    windows = [Window(n, np.zeros(length, np.int32), *([np.empty(0, np.int32)] * 3)) for n, length in lengths]
    logits = [np.array(row, np.float32) for row in ([30, 0], [0, 4], [1, 0])]
    assert best_classes(windows, logits, 2) == [1, 0]


def test_labels_hold_where_their_mean_logit_is_above_zero() -> None:
    windows = [
        Window(n, np.zeros(length, np.int32), *([np.empty(0, np.int32)] * 3)) for n, length in ((0, 3), (0, 12), (1, 2))
    ]
    logits = [np.array(row, np.float32) for row in ([30, -1, 5], [-2, 1, -1], [-1, -1, 0])]
    # (1 x 30 - 10 x 2) / 11 > 0, (-1 + 10) / 11 > 0, (5 - 10) / 11 < 0; a logit of 0 is a probability of one half.
    assert label_sets(windows, logits, 2) == [(0, 1), ()]


@given(seed=st.integers(0, 999), words=st.integers(1, 40))
def test_no_answer_is_worth_cls_in_the_window_where_that_is_least(seed: int, words: int) -> None:
    random = np.random.default_rng(seed)
    question = QuestionExample("q", "where ?", " ".join(random.choice(tiny.PLACES, words)), ())
    windows = Encoder(TOKENIZER, Task("question-answering", window=20, stride=4), True).windows([question])
    assert all(window.targets.tolist() == [0, 0] for window in windows)
    logits = [random.normal(size=(len(w.ids), 2)).astype(np.float32) for w in windows]
    spans = [
        float(values[s, 0] + values[e, 1])
        for w, values in zip(windows, logits, strict=True)
        for s in range(len(w.ids))
        for e in range(s, min(s + 30, len(w.ids)))
        if w.places[s, 0] >= 0 and w.places[e, 0] >= 0
    ]
    null = min(float(values[0, 0] + values[0, 1]) for values in logits)
    assert best_spans(windows, logits, [question], 30)[0].null_margin == null - max(spans)


def test_a_context_without_tokens_has_no_answer() -> None:
    question = QuestionExample("q", "where ?", " ", ())
    windows = Encoder(TOKENIZER, Task("question-answering", window=20, stride=4), True).windows([question])
    logits = [np.zeros((len(window.ids), 2), np.float32) for window in windows]
    assert best_spans(windows, logits, [question], 30) == [Span(0, 0, 0.0, 0.0)]


def test_tags_come_from_the_window_where_the_word_is_deepest() -> None:
    names = tags_of(("PER",))
    sentence = TaggedExample(tuple("abcdefghijklmnopqrst"), ("O",) * 20)
    task = Task("token-classification", labels=("PER",), window=16, stride=6)
    windows = Encoder(TOKENIZER, task, uses_types=True).windows([sentence])
    assert len(windows) == 2
    # The first window says B-PER everywhere, the second I-PER.
    logits = [np.eye(3, dtype=np.float32)[np.full(len(w.ids), n + 1)] for n, w in enumerate(windows)]
    (tags,) = best_tags(windows, logits, [sentence], names)
    change = tags.index("I-PER")
    assert tags == ["B-PER"] * change + ["I-PER"] * (20 - change)
    assert 8 < change < 14  # inside the overlap of tokens 8..13


def test_entities_of_plain_text() -> None:
    text = "Anna-Ben went to Oslox."
    pieces = split_words(TOKENIZER, text)
    assert [text[a:b] for a, b in pieces] == ["Anna", "-", "Ben", "went", "to", "Oslox", "."]
    tags = ["B-PER", "I-PER", "I-PER", "O", "I-LOC", "B-LOC", "O"]
    assert [(g["entity_group"], text[g["start"] : g["end"]]) for g in group_entities(tags, pieces)] == [
        ("PER", "Anna-Ben"), ("LOC", "to"), ("LOC", "Oslox")
    ]  # fmt: skip
