"""Rows of token ids: what the engine could not read never reaches it."""

from pathlib import Path

import numpy as np
import pytest

from service.errors import InvalidRequestError
from service.models import Model
from service.pipeline import answer_now
from service.raw_tokens import RAW_TOKENS, Logits, NoParameters, padded, rows
from tests.service import fake

NAMES = ("input_ids", "attention_mask", "token_type_ids")
POINTERS = {name: f"/inputs/{i}" for i, name in enumerate(NAMES)}


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return fake.model(tmp_path, "token-classification")[0]


def arrays(**given: list[list[int]]) -> dict[str, np.ndarray]:
    return {name: np.array(values, np.int64) for name, values in given.items()}


def test_the_mask_ends_a_row_and_types_go_along(model: Model) -> None:
    ids, mask, types = [[1, 2, 3], [4, 5, 0]], [[1, 1, 1], [1, 1, 0]], [[0, 0, 1], [0, 1, 0]]
    found = rows(model, arrays(input_ids=ids, attention_mask=mask, token_type_ids=types), POINTERS)
    assert [(row.ids.tolist(), row.types.tolist()) for row in found] == [([1, 2, 3], [0, 0, 1]), ([4, 5], [0, 1])]
    (alone,) = rows(model, arrays(input_ids=[[7, 8]]), POINTERS)
    assert (alone.ids.tolist(), alone.types.tolist(), alone.ids.dtype) == ([7, 8], [0, 0], np.int32)
    for length in (0, 5):
        assert rows(model, {"input_ids": np.zeros((0, length), np.int64)}, POINTERS) == []


def test_the_length_of_no_rows_has_a_limit_too(model: Model) -> None:
    """Not a value is sent, and a mask of that length would be gigabytes."""
    with pytest.raises(InvalidRequestError, match="1 to 64"):
        rows(model, {"input_ids": np.zeros((0, 2**40), np.int64)}, POINTERS)


IDS = [[1, 2, 3]]
BAD: list[tuple[dict[str, list[list[int]]], str, str]] = [
    ({"input_ids": [[1, 10**6]]}, "/inputs/0/data", "row 0, column 1: it must be 0 to"),
    ({"input_ids": [[1], [-1]]}, "/inputs/0/data", "row 1, column 0"),
    ({"input_ids": [[2**40]]}, "/inputs/0/data", "row 0, column 0"),
    ({"input_ids": [[]]}, "/inputs/0/shape", "1 to 64"),
    ({"input_ids": [[1] * 65]}, "/inputs/0/shape", "1 to 64"),
    ({"input_ids": IDS, "attention_mask": [[1, 1]]}, "/inputs/1/shape", "that of input_ids, [1, 3]"),
    ({"input_ids": IDS, "attention_mask": [[0, 1, 1]]}, "/inputs/1/data", "pad on the right"),
    ({"input_ids": IDS, "attention_mask": [[1, 0, 1]]}, "/inputs/1/data", "row 0 must be ones"),
    ({"input_ids": IDS, "attention_mask": [[0, 0, 0]]}, "/inputs/1/data", "at least one"),
    ({"input_ids": IDS, "attention_mask": [[2, 0, 0]]}, "/inputs/1/data", "row 0"),
    ({"input_ids": IDS, "attention_mask": [[2**62, 2**62, 2**62]]}, "/inputs/1/data", "row 0"),
    ({"input_ids": IDS, "token_type_ids": [[0, 0, 2]]}, "/inputs/2/data", "row 0, column 2: it must be 0 to 1"),
]


@pytest.mark.parametrize(("given", "pointer", "message"), BAD)
def test_what_the_engine_could_not_read_is_refused(
    model: Model, given: dict[str, list[list[int]]], pointer: str, message: str
) -> None:
    with pytest.raises(InvalidRequestError) as error:
        rows(model, arrays(**given), POINTERS)
    assert error.value.fields[0].pointer == pointer
    assert message in error.value.detail


def test_logits_are_the_models_own(model: Model) -> None:
    (row,) = rows(model, arrays(input_ids=IDS), POINTERS)
    task = RAW_TOKENS[model.task]
    entries, usage = answer_now(task, model, row, NoParameters())
    assert (usage.tokens, usage.windows) == (3, 1)
    expected = np.sin(np.array(IDS[0])[:, None] * (np.arange(len(model.labels)) + 1)).astype(np.float32)
    assert np.array_equal(entries[0].values, expected)
    assert task.golden(entries) == [expected.tolist()]


def test_rows_are_padded_with_zeros() -> None:
    entries = [Logits(values=np.ones((2, 2), np.float32)), Logits(values=np.ones((1, 2), np.float32))]
    assert padded(entries, (2, 2), 2, True).tolist() == [[[1, 1], [1, 1]], [[1, 1], [0, 0]]]
    assert padded([Logits(values=np.ones(3, np.float32))], (1, 9), 3, False).tolist() == [[1, 1, 1]]
