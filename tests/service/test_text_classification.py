"""Labels come best first; long texts are averaged over windows or refused."""

import dataclasses

import numpy as np
import pytest

from service.errors import InvalidRequestError
from service.models import Model
from service.schemas import TextClassificationParameters
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
