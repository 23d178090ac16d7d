import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from compression.data import QuestionExample, TaggedExample, tags_of
from compression.decode import best_classes, best_spans, best_tags
from compression.encode import Encoder, Window
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
    start, end, margin = best_spans([window], [logits], [question], 30)[0]
    assert question.context[start:end] == "annax"
    assert margin > 0


def test_classes_are_the_best_logit_averaged_by_tokens() -> None:
    lengths = ((0, 3), (0, 12), (1, 2))  # example, tokens with the two special ones
    windows = [Window(n, np.zeros(length, np.int32), *([np.empty(0, np.int32)] * 3)) for n, length in lengths]
    logits = [np.array(row, np.float32) for row in ([30, 0], [0, 4], [1, 0])]
    assert best_classes(windows, logits, 2) == [1, 0]


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
