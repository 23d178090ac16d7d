"""The answer is the best span, exact in the text, with a score that means something."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import InvalidRequestError, TooLargeError
from service.models import Model
from service.question_answering import decode, encode
from service.schemas import QuestionAnsweringParameters, QuestionInput
from service.windows import Encoded, Floats
from tests.service import fake
from tests.service.test_windows import TEXTS


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return fake.model(tmp_path_factory.mktemp("qa"), "question-answering")[0]


CONTEXT = "the film of john was good . " * 6 + "where is paris ? mary was in london when the film was bad"


def encoded_with_logits(model: Model, context: str, seed: int) -> tuple[QuestionInput, Encoded, list[Floats]]:
    item = QuestionInput(question="who was in london", context=context)
    encoded = encode(model, item, QuestionAnsweringParameters(), "/inputs")
    rng = np.random.default_rng(seed)
    return item, encoded, [rng.normal(0, 3, (len(w.ids), 2)).astype(np.float32) for w in encoded.windows]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_the_best_answer_is_the_best_span_of_all_windows(model: Model, seed: int, longest: int) -> None:
    item, encoded, logits = encoded_with_logits(model, CONTEXT, seed)
    parameters = QuestionAnsweringParameters(max_answer_tokens=longest)
    (answer,) = decode(model, item, encoded, logits, parameters)
    best: dict[tuple[int, int], float] = {}
    for window, values in zip(encoded.windows, logits, strict=True):
        rows = window.content(values)
        for start in range(len(rows)):
            for end in range(start, min(start + longest, len(rows))):
                span = window.start + start, window.start + end
                best[span] = max(best.get(span, -np.inf), float(rows[start, 0] + rows[end, 1]))
    first, last = max(best, key=lambda span: best[span])
    spans = encoded.tokens.spans
    assert (answer.start, answer.end) == (spans[first, 0], spans[last, 1])
    worths = np.array(list(best.values()))
    assert answer.score == pytest.approx(1 / np.exp(worths - worths.max()).sum(), rel=1e-4)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_answers_differ_fall_and_never_add_up_to_more_than_one(model: Model, seed: int) -> None:
    item, encoded, logits = encoded_with_logits(model, CONTEXT, seed)
    answers = decode(model, item, encoded, logits, QuestionAnsweringParameters(top_k=100))
    assert len({(a.start, a.end) for a in answers}) == len(answers) == 100
    scores = [a.score for a in answers]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) <= 1 + 1e-9
    assert decode(model, item, encoded, logits, QuestionAnsweringParameters(top_k=3)) == answers[:3]


@settings(deadline=None, max_examples=100)
@given(TEXTS, st.integers(0, 100))
def test_the_answer_is_the_text_between_start_and_end(model: Model, text: str, seed: int) -> None:
    context = f"{text} paris"
    item, encoded, logits = encoded_with_logits(model, context, seed)
    for answer in decode(model, item, encoded, logits, QuestionAnsweringParameters(top_k=5)):
        assert context[answer.start : answer.end] == answer.answer != ""


@settings(deadline=None, max_examples=100)
@given(TEXTS, st.integers(0, 100))
def test_offsets_in_utf16_cut_the_text_as_javascript_does(model: Model, text: str, seed: int) -> None:
    context = f"{text} paris"
    units = context.encode("utf-16-le")
    item, encoded, logits = encoded_with_logits(model, context, seed)
    points = decode(model, item, encoded, logits, QuestionAnsweringParameters(top_k=5))
    answers = decode(model, item, encoded, logits, QuestionAnsweringParameters(top_k=5, offset_unit="utf16"))
    assert [(a.answer, a.score) for a in answers] == [(a.answer, a.score) for a in points]
    for answer in answers:
        assert units[2 * answer.start : 2 * answer.end].decode("utf-16-le") == answer.answer


def test_an_answer_never_ends_inside_a_word_and_equal_ones_keep_the_higher_score(model: Model) -> None:
    item = QuestionInput(question="who", context="in cafe\u0301s of q.")
    encoded = encode(model, item, QuestionAnsweringParameters(), "/inputs")
    (window,) = encoded.windows
    logits = np.zeros((len(window.ids), 2), np.float32)
    words = encoded.tokens.words.tolist()
    assert words.count(1) > 2, "the test needs a word of several tokens"
    inside = window.offset + words.index(1) + 1
    logits[inside] = 9
    answers = decode(model, item, encoded, [logits], QuestionAnsweringParameters(top_k=4))
    assert [a.answer for a in answers].count("cafe\u0301s") == 1
    assert answers[0].answer == "cafe\u0301s"
    count = len(encoded.tokens)
    assert count <= 10, "the sum below is over all spans: none may be longer than the model's limit"
    assert answers[0].score == pytest.approx(np.exp(18) / _total(count, inside - window.offset, 9), rel=1e-4)


def _total(count: int, peak: int, height: float) -> float:
    """Sum exp(worth) over all spans, where start and end logits are `height` at `peak` and 0 elsewhere."""
    return sum(np.exp(height * ((a == peak) + (b == peak))) for a in range(count) for b in range(a, count))


def test_a_window_without_the_answer_cannot_be_sure_of_itself(model: Model) -> None:
    item, encoded, logits = encoded_with_logits(model, CONTEXT, 0)
    assert len(encoded.windows) == 3
    for values in logits:
        values[:] = 0
    logits[-1][-2] = 12
    (answer,) = decode(model, item, encoded, logits, QuestionAnsweringParameters())
    assert (answer.answer, answer.end) == ("bad", len(CONTEXT))
    assert answer.score > 0.9999


def test_all_spans_come_out_when_all_are_asked_for(model: Model) -> None:
    item, encoded, logits = encoded_with_logits(model, "a is the", 3)
    answers = decode(model, item, encoded, logits, QuestionAnsweringParameters(top_k=100))
    assert len(answers) == 6
    assert sum(a.score for a in answers) == pytest.approx(1)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.floats(-12, 12), st.integers(1, 100))
def test_no_answer_is_one_more_candidate_worth_cls_less_the_threshold(
    model: Model, seed: int, threshold: float, top_k: int
) -> None:
    item, encoded, logits = encoded_with_logits(model, CONTEXT, seed)
    everything = QuestionAnsweringParameters(top_k=100)
    always = decode(model, item, encoded, logits, everything)
    able = dataclasses.replace(model, no_answer_threshold=threshold)
    answers = decode(able, item, encoded, logits, QuestionAnsweringParameters(top_k=top_k))
    null = min(float(values[0].sum()) for values in logits) - threshold
    # softmax over all spans and this: the share of each span shrinks by what no answer takes.
    best = max(
        float(window.content(values)[a, 0] + window.content(values)[b, 1])
        for window, values in zip(encoded.windows, logits, strict=True)
        for a in range(len(window.content(values)))
        for b in range(a, min(a + 10, len(window.content(values))))
    )
    odds = np.exp(null - best) * always[0].score  # against all spans together
    silent = [answer for answer in answers if answer.answer == ""]
    spans = [answer for answer in answers if answer.answer != ""]
    assert [(a.start, a.end) for a in spans] == [(a.start, a.end) for a in always[: len(spans)]]
    assert [a.score for a in spans] == pytest.approx([a.score / (1 + odds) for a in always[: len(spans)]], rel=1e-4)
    assert [a.score for a in answers] == sorted((a.score for a in answers), reverse=True)
    assert len(answers) == top_k
    assert (answers[0].answer == "") == (null > best)
    for answer in silent:
        assert (answer.start, answer.end) == (0, 0)
        assert answer.score == pytest.approx(odds / (1 + odds), rel=1e-4)


def test_no_answer_comes_last_where_all_is_asked_for(model: Model) -> None:
    able = dataclasses.replace(model, no_answer_threshold=100.0)
    item, encoded, logits = encoded_with_logits(able, "a is the", 3)
    answers = decode(able, item, encoded, logits, QuestionAnsweringParameters(top_k=100))
    assert [answer.answer for answer in answers].index("") == len(answers) - 1 == 6


@pytest.mark.parametrize("blank", ["", " \n", "\u200d", "\u0301"])
@pytest.mark.parametrize("field", ["question", "context"])
def test_a_question_or_context_without_words_is_refused(model: Model, field: str, blank: str) -> None:
    item = QuestionInput(**{"question": "who", "context": "john", field: blank})
    with pytest.raises(InvalidRequestError, match=f"/inputs/2/{field}: the {field} has no words"):
        encode(model, item, QuestionAnsweringParameters(), "/inputs/2")


def test_a_callers_stride_is_used(model: Model) -> None:
    item = QuestionInput(question="who", context=CONTEXT)
    counts = [
        len(encode(model, item, QuestionAnsweringParameters(stride=stride), "/inputs").windows) for stride in (0, 8, 20)
    ]
    assert counts[0] < counts[1] < counts[2]
    assert counts[1] == len(encode(model, item, QuestionAnsweringParameters(), "/inputs").windows)


def test_long_contexts_are_answered_from_their_end(tmp_path: Path) -> None:
    model, _ = fake.model(tmp_path, "question-answering", window=64)
    context = "the film was bad. " * 3000 + "mary"
    item = QuestionInput(question="who", context=context)
    encoded = encode(model, item, QuestionAnsweringParameters(), "/inputs")
    logits = [np.zeros((len(window.ids), 2), np.float32) for window in encoded.windows]
    logits[-1][-2] = 20
    (answer,) = decode(model, item, encoded, logits, QuestionAnsweringParameters())
    assert (answer.answer, answer.start) == ("mary", len(context) - 4)


def test_a_callers_window_is_used_as_far_as_the_model_reads(model: Model) -> None:
    wide = dataclasses.replace(model, windows=dataclasses.replace(model.windows, positions=64))
    item = QuestionInput(question="who", context=CONTEXT)
    longest = [
        max(
            len(window.ids)
            for window in encode(wide, item, QuestionAnsweringParameters(window=size), "/inputs").windows
        )
        for size in (8, 32, 64)
    ]
    assert longest == [8, 32, min(64, len(model.windows.tokenizer(CONTEXT)) + 4)]
    for able, limit in ((wide, 64), (model, 32)):
        with pytest.raises(InvalidRequestError) as raised:
            encode(able, item, QuestionAnsweringParameters(window=65), "/inputs")
        (field,) = raised.value.fields
        assert (field.pointer, field.value, field.limit) == ("/parameters/window", "65", str(limit))


def test_a_caller_says_how_long_a_question_may_be(model: Model) -> None:
    item = QuestionInput(question="who " * 20, context=CONTEXT)
    encoded = encode(model, item, QuestionAnsweringParameters(max_question_tokens=20), "/inputs")
    assert all(len(window.ids) <= 32 for window in encoded.windows)
    for count, most, limit in ((20, 19, "19"), (29, 1000, "28")):
        asked = QuestionInput(question="who " * count, context=CONTEXT)
        with pytest.raises(InvalidRequestError) as raised:
            encode(model, asked, QuestionAnsweringParameters(max_question_tokens=most), "/inputs")
        assert (raised.value.fields[0].pointer, raised.value.fields[0].limit) == ("/inputs/question", limit)


def test_answers_may_end_within_a_word_where_the_caller_wants_that(model: Model) -> None:
    item = QuestionInput(question="who", context="in cafe\u0301s of q.")
    encoded = encode(model, item, QuestionAnsweringParameters(), "/inputs")
    logits = np.zeros((len(encoded.windows[0].ids), 2), np.float32)
    place = encoded.windows[0].offset + encoded.tokens.words.tolist().index(1) + 1
    logits[place] = 9
    (answer,) = decode(model, item, encoded, [logits], QuestionAnsweringParameters(align_to_words=False))
    assert answer.answer == "a"


def test_no_answer_is_the_callers_choice(model: Model) -> None:
    item, encoded, logits = encoded_with_logits(model, CONTEXT, 0)
    for values in logits:
        values[0] = 50
    able = dataclasses.replace(model, no_answer_threshold=1.0)
    for asked, one, wanted in ((model, None, False), (model, True, True), (able, None, True), (able, False, False)):
        (answer,) = decode(asked, item, encoded, logits, QuestionAnsweringParameters(no_answer=one))
        assert (answer.answer == "") == wanted


def test_a_text_of_too_many_windows_is_refused_before_they_are_made(tmp_path: Path) -> None:
    model, _ = fake.model(tmp_path, "question-answering")
    item = QuestionInput(question="who", context="a " * 5000)
    with pytest.raises(TooLargeError) as raised:
        encode(model, item, QuestionAnsweringParameters(stride=27), "/inputs")
    assert (raised.value.fields[0].value, raised.value.fields[0].limit) == ("4973", "4096")
