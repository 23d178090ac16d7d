"""Labels come best first; long texts are averaged over windows or refused."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from service.errors import InvalidRequestError
from service.models import Model
from service.schemas import TextClassificationParameters, TextPair
from service.text_classification import decode, encode
from tests.service import fake


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return fake.model(tmp_path_factory.mktemp("cls"), "text-classification")[0]


def test_scores_are_a_softmax_best_first(model: Model) -> None:
    encoded = encode(model, "good film", TextClassificationParameters(), "/inputs")
    labels = decode(model, "", encoded, [np.array([1.0, 3.0], np.float32)], TextClassificationParameters())
    assert [entry.label for entry in labels] == ["positive", "negative"]
    assert labels[0].score == pytest.approx(1 / (1 + np.exp(-2)))
    assert sum(entry.score for entry in labels) == pytest.approx(1)
    top = decode(model, "", encoded, [np.array([1.0, 3.0], np.float32)], TextClassificationParameters(top_k=1))
    assert top == labels[:1]


def test_huge_logits_do_not_overflow(model: Model) -> None:
    encoded = encode(model, "good film", TextClassificationParameters(), "/inputs")
    labels = decode(model, "", encoded, [np.array([3e4, -3e4], np.float32)], TextClassificationParameters())
    assert [entry.score for entry in labels] == [1.0, 0.0]


def test_a_multi_label_models_scores_are_sigmoids_best_first(model: Model) -> None:
    model = dataclasses.replace(model, multi_label=True)
    encoded = encode(model, "good film", TextClassificationParameters(), "/inputs")
    labels = decode(model, "", encoded, [np.array([1.0, 3.0], np.float32)], TextClassificationParameters())
    assert [entry.label for entry in labels] == ["positive", "negative"]
    assert [entry.score for entry in labels] == pytest.approx([1 / (1 + np.exp(-3)), 1 / (1 + np.exp(-1))])
    labels = decode(model, "", encoded, [np.array([3e4, -3e4], np.float32)], TextClassificationParameters())
    assert [entry.score for entry in labels] == [1.0, 0.0]


def test_windows_weigh_by_their_tokens(model: Model) -> None:
    encoded = encode(model, "the " * 40, TextClassificationParameters(), "/inputs")
    sizes = [window.end - window.start for window in encoded.windows]
    assert sizes == [30, 18]
    logits = [np.array([0, 2], np.float32), np.array([1, 0], np.float32)]
    (best, _) = decode(model, "", encoded, logits, TextClassificationParameters())
    gap = (2 * 30 - 1 * 18) / 48
    assert best.score == pytest.approx(1 / (1 + np.exp(-gap)))


def test_long_texts_are_refused_on_request_with_the_limit(model: Model) -> None:
    refuse = TextClassificationParameters(long_inputs="refuse")
    assert len(encode(model, "the " * 30, refuse, "/inputs").windows) == 1
    with pytest.raises(InvalidRequestError) as raised:
        encode(model, "the " * 31, refuse, "/inputs/0")
    (field,) = raised.value.fields
    assert (field.pointer, field.value, field.limit) == ("/inputs/0", "31", "30")


@pytest.mark.parametrize("text", ["", " \t\r\n", "\u200b"])
def test_a_text_without_words_is_refused(model: Model, text: str) -> None:
    with pytest.raises(InvalidRequestError, match="the text has no words"):
        encode(model, text, TextClassificationParameters(), "/inputs")


@pytest.mark.parametrize(
    ("function", "scores"),
    [
        ("none", [3.0, 1.0]),
        ("sigmoid", [1 / (1 + np.exp(-3)), 1 / (1 + np.exp(-1))]),
        ("softmax", [1 / (1 + np.exp(-2)), 1 / (1 + np.exp(2))]),
    ],
)
@pytest.mark.parametrize("multi_label", [False, True])
def test_the_caller_chooses_the_function(model: Model, function: Any, scores: list[float], multi_label: bool) -> None:
    model = dataclasses.replace(model, multi_label=multi_label)
    parameters = TextClassificationParameters(function=function)
    encoded = encode(model, "good film", parameters, "/inputs")
    labels = decode(model, "", encoded, [np.array([1.0, 3.0], np.float32)], parameters)
    assert [entry.score for entry in labels] == pytest.approx(scores)


def test_a_single_label_has_a_sigmoid(model: Model) -> None:
    model = dataclasses.replace(model, labels=("relevant",))
    encoded = encode(model, "good film", TextClassificationParameters(), "/inputs")
    (label,) = decode(model, "", encoded, [np.array([-1.0], np.float32)], TextClassificationParameters())
    assert label.score == pytest.approx(1 / (1 + np.e))


def pair(first: str, second: str) -> TextPair:
    return TextPair(text=first, text_pair=second)


@pytest.fixture(scope="module")
def pairs(model: Model) -> Model:
    return dataclasses.replace(model, pairs=True)


def test_a_pair_that_fits_is_one_window_of_two_segments(pairs: Model) -> None:
    for first, second in (("good film", "the film was bad"), ("the film was bad", "good film")):
        encoded = encode(pairs, pair(first, second), TextClassificationParameters(), "/inputs")
        (window,) = encoded.windows
        one, two = (pairs.windows.tokenizer(text).ids.tolist() for text in (first, second))
        sep = pairs.windows.tokenizer.sep
        assert window.ids.tolist() == [pairs.windows.tokenizer.cls, *one, sep, *two, sep]
        assert window.types.tolist() == [0] * (len(one) + 2) + [1] * (len(two) + 1)


@pytest.mark.parametrize("longer_first", [True, False])
def test_of_a_long_pair_the_longer_text_is_cut_and_the_other_whole_in_every_window(
    pairs: Model, longer_first: bool
) -> None:
    short, long = "good film", "the john was in london " * 12
    item = pair(long, short) if longer_first else pair(short, long)
    encoded = encode(pairs, item, TextClassificationParameters(), "/inputs")
    whole = pairs.windows.tokenizer(short).ids.tolist()
    covered: set[int] = set()
    for window in encoded.windows:
        assert len(window.ids) <= pairs.windows.length
        kept = window.ids[-3:-1] if longer_first else window.ids[1:3]
        assert kept.tolist() == whole
        assert window.types.sum() == (3 if longer_first else window.end - window.start + 1)
        assert (
            window.content(window.ids[:, None])[:, 0].tolist() == encoded.tokens.ids[window.start : window.end].tolist()
        )
        covered |= set(range(window.start, window.end))
    assert covered == set(range(60)) and len(encoded.windows) > 1


def test_two_long_texts_are_refused_with_the_limit(pairs: Model) -> None:
    assert len(encode(pairs, pair("a " * 15, "a " * 14), TextClassificationParameters(), "/inputs").windows) == 1
    with pytest.raises(InvalidRequestError) as raised:
        encode(pairs, pair("a " * 20, "a " * 15), TextClassificationParameters(), "/inputs/1")
    (field,) = raised.value.fields
    assert (field.pointer, field.value, field.limit) == ("/inputs/1/text_pair", "15", "14")
    with pytest.raises(InvalidRequestError, match="30 tokens, one window holds 29"):
        encode(pairs, pair("a " * 15, "a " * 15), TextClassificationParameters(long_inputs="refuse"), "/inputs")


def test_pairs_and_single_texts_are_not_mixed_up(model: Model, pairs: Model) -> None:
    with pytest.raises(InvalidRequestError, match="the model reads single texts"):
        encode(model, pair("a", "b"), TextClassificationParameters(), "/inputs")
    with pytest.raises(InvalidRequestError, match=r'the model reads pairs: send \{"text": '):
        encode(pairs, "a", TextClassificationParameters(), "/inputs")
    with pytest.raises(InvalidRequestError, match="/inputs/text_pair: the text has no words"):
        encode(pairs, pair("a", " "), TextClassificationParameters(), "/inputs")
