"""Reading texts stops where nobody waits any more, and where there are too many."""

from pathlib import Path

import pytest

from service.errors import ClientGoneError, TooLargeError
from service.pipeline import encode_all
from service.text_classification import TEXT_CLASSIFICATION
from tests.service import fake

MANY = 10_000


def test_reading_stops_where_the_client_has_gone(tmp_path: Path) -> None:
    model, _ = fake.model(tmp_path, "text-classification")
    asked = []

    def gone() -> bool:
        asked.append(None)
        return len(asked) > 3

    with pytest.raises(ClientGoneError):
        encode_all(
            TEXT_CLASSIFICATION,
            model,
            ["a"] * MANY,
            TEXT_CLASSIFICATION.parameters(),
            ["/inputs"] * MANY,
            10**9,
            gone,
        )
    assert len(asked) == 4


def test_reading_stops_where_the_queue_could_never_hold_it(tmp_path: Path) -> None:
    model, _ = fake.model(tmp_path, "text-classification")
    asked = []
    with pytest.raises(TooLargeError, match="at least 12 tokens are more than the 10"):
        encode_all(
            TEXT_CLASSIFICATION,
            model,
            ["a"] * MANY,
            TEXT_CLASSIFICATION.parameters(),
            ["/inputs"] * MANY,
            10,
            lambda: bool(asked.append(None)),
        )
    assert len(asked) == 4
