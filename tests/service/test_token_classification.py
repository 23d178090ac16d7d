"""IOB2 tags of words become entities that are exact in the text."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from service.errors import InvalidRequestError
from service.models import Model
from service.schemas import Entity, TokenClassificationParameters
from service.token_classification import decode, encode
from tests.random_artifact import LABELS
from tests.service import fake
from tests.service.test_windows import TEXTS

TAGS = LABELS["token-classification"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return fake.model(tmp_path_factory.mktemp("ner"), "token-classification")[0]


def entities(model: Model, text: str, tags: Sequence[str], **parameters: Any) -> list[Entity]:
    """Decode `text` as if the encoder had given token i the tag i, with logit 5."""
    chosen = TokenClassificationParameters(**parameters)
    encoded = encode(model, text, chosen, "/inputs")
    assert len(encoded.tokens) == len(tags)
    rows = np.array([[5.0 * (tag == name) for name in TAGS] for tag in tags], np.float32)
    logits = []
    for window in encoded.windows:
        values = np.zeros((len(window.ids), len(TAGS)), np.float32)
        values[1:-1] = rows[window.start : window.end]
        logits.append(values)
    return decode(model, text, encoded, logits, chosen)


def found(entries: list[Entity]) -> list[tuple[str, str]]:
    return [(entry.entity_group, entry.word) for entry in entries]


def test_b_starts_and_i_continues_its_own_group(model: Model) -> None:
    text = "john mary london of paris in the"
    tags = ["B-PER", "B-PER", "B-LOC", "I-LOC", "I-LOC", "O", "I-ORG"]
    assert found(entities(model, text, tags)) == [
        ("PER", "john"),
        ("PER", "mary"),
        ("LOC", "london of paris"),
        ("ORG", "the"),
    ]
    assert found(entities(model, "john mary", ["B-PER", "I-LOC"])) == [("PER", "john"), ("LOC", "mary")]
    assert found(entities(model, "john the mary", ["I-PER", "O", "I-PER"])) == [("PER", "john"), ("PER", "mary")]


def test_the_score_is_the_mean_of_the_words(model: Model) -> None:
    encoded = encode(model, "john mary", TokenClassificationParameters(), "/inputs")
    values = np.zeros((4, len(TAGS)), np.float32)
    values[1, TAGS.index("B-PER")], values[2, TAGS.index("I-PER")] = 3, 5
    (entity,) = decode(model, "john mary", encoded, [values], TokenClassificationParameters())
    expected = [np.exp(v) / (np.exp(v) + len(TAGS) - 1) for v in (3, 5)]
    assert entity.score == pytest.approx(np.mean(expected), rel=1e-6)


def test_a_word_takes_the_tag_of_its_first_token_its_mean_or_its_surest_token(model: Model) -> None:
    # "xyz" is x ##y ##z: one says PER a little, two say LOC, the last says ORG loudly.
    encoded = encode(model, "xyz", TokenClassificationParameters(), "/inputs")
    assert len(encoded.tokens) == 3
    values = np.zeros((5, len(TAGS)), np.float32)
    values[1, TAGS.index("B-PER")] = 1.0
    values[1:4, TAGS.index("B-LOC")] = [0.9, 3.0, 3.0]
    values[3, TAGS.index("B-ORG")] = 3.5
    groups = {}
    for aggregation in ("first", "average", "max"):
        parameters = TokenClassificationParameters.model_validate({"aggregation": aggregation})
        (entity,) = decode(model, "xyz", encoded, [values], parameters)
        groups[aggregation] = entity.entity_group
        assert (entity.word, entity.start, entity.end) == ("xyz", 0, 3)
    assert groups == {"first": "PER", "average": "LOC", "max": "LOC"}


def test_ignored_groups_are_left_out_and_o_can_be_asked_for(model: Model) -> None:
    text, tags = "john was in the london", ["B-PER", "O", "O", "O", "B-LOC"]
    assert found(entities(model, text, tags, ignore_labels=["O", "PER"])) == [("LOC", "london")]
    assert found(entities(model, text, tags, ignore_labels=[])) == [
        ("PER", "john"),
        ("O", "was in the"),
        ("LOC", "london"),
    ]
    with pytest.raises(InvalidRequestError, match="no such group; did you mean 'LOC'"):
        entities(model, text, tags, ignore_labels=["O", "LOCC"])


def test_offsets_may_be_utf16_units(model: Model) -> None:
    text, tags = "😀 john 😀 london", ["O", "B-PER", "O", "B-LOC"]
    for unit, places in (("code_point", [(2, 6), (9, 15)]), ("utf16", [(3, 7), (11, 17)])):
        assert [(e.start, e.end) for e in entities(model, text, tags, offset_unit=unit)] == places


def test_groups_to_ignore_have_a_limit() -> None:
    with pytest.raises(ValidationError, match="at most 1000"):
        TokenClassificationParameters(ignore_labels=["O"] * 1001)


def test_an_entity_over_two_windows_is_one(model: Model) -> None:
    text = "the " * 24 + "john " * 8 + "the " * 30
    tags = ["O"] * 24 + ["B-PER"] + ["I-PER"] * 7 + ["O"] * 30
    assert len(encode(model, text, TokenClassificationParameters(), "/inputs").windows) == 3
    (entity,) = entities(model, text, tags)
    assert text[entity.start : entity.end] == entity.word == ("john " * 8).strip()


def test_a_text_without_words_has_no_entities(model: Model) -> None:
    for text in ("", " \n", "\u200d"):
        assert entities(model, text, []) == []


@settings(deadline=None, max_examples=100)
@given(TEXTS, st.integers(0, 100))
def test_the_word_is_the_text_between_start_and_end(model: Model, text: str, seed: int) -> None:
    parameters = TokenClassificationParameters(ignore_labels=[])
    encoded = encode(model, text, parameters, "/inputs")
    rng = np.random.default_rng(seed)
    logits = [rng.normal(0, 3, (len(w.ids), len(TAGS))).astype(np.float32) for w in encoded.windows]
    place = 0
    for entity in decode(model, text, encoded, logits, parameters):
        assert text[entity.start : entity.end] == entity.word != ""
        assert entity.start >= place
        place = entity.end


def test_without_words_tokens_are_judged_by_themselves(model: Model) -> None:
    text, tags = "xyz john", ["B-PER", "I-PER", "O", "B-LOC"]
    assert found(entities(model, text, tags, aggregation="simple")) == [("PER", "xy"), ("LOC", "john")]
    assert found(entities(model, text, tags, aggregation="none")) == [("B-PER", "x"), ("I-PER", "y"), ("B-LOC", "john")]
    kept = entities(model, text, tags, aggregation="none", ignore_labels=["PER"])
    assert found(kept) == [("O", "z"), ("B-LOC", "john")]


def test_a_callers_stride_is_used_and_one_without_progress_refused(model: Model) -> None:
    text = "john " * 100
    counts = [
        len(encode(model, text, TokenClassificationParameters(stride=stride), "/inputs").windows)
        for stride in (0, 8, 29)
    ]
    assert counts == [4, 5, 71]
    with pytest.raises(InvalidRequestError) as raised:
        encode(model, text, TokenClassificationParameters(stride=30), "/inputs")
    (field,) = raised.value.fields
    assert (field.pointer, field.value, field.limit) == ("/parameters/stride", "30", "29")
