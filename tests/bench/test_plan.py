"""The plans and the command line: what would be measured, without measuring it."""

from itertools import pairwise

import numpy as np
import pytest

from bench import kernel_products
from bench.__main__ import chosen_cases, parser
from bench.batch import Batch
from bench.engines import ENGINES, REFERENCE
from bench.plan import MIXED_LENGTHS, PURPOSES, Case, default_plan, full_plan, quick_plan
from bench.shapes import SHAPES


@pytest.mark.parametrize("plan", [quick_plan, default_plan, full_plan])
@pytest.mark.parametrize("threads", [1, 2, 8])
def test_plans_name_what_exists_and_keep_to_the_threads(plan: object, threads: int) -> None:
    cases = plan(threads)  # type: ignore[operator]
    assert len(cases) == len(set(cases))
    for case in cases:
        assert case.model in SHAPES
        assert set(case.engines) <= set(ENGINES)
        assert case.purpose in PURPOSES
        assert 1 <= case.threads <= threads
        assert 1 <= min(case.lengths) <= max(case.lengths) <= 512


def test_the_default_holds_the_headline_with_every_engine() -> None:
    headline = [case for case in default_plan(2) if case.purpose == "headline"]
    assert [(case.threads, case.lengths) for case in headline] == [
        (threads, (length,)) for threads in (1, 2) for length in (32, 128, 384)
    ]
    assert all(case.engines == tuple(ENGINES) and REFERENCE in case.engines for case in headline)


def test_cases_of_one_model_lie_side_by_side() -> None:
    loaded = [(case.model, case.sparsity, case.threads) for case in full_plan(2)]
    changes = sum(a != b for a, b in pairwise(loaded))
    assert changes == len(set(loaded)) - 1


def test_the_mixed_batch_is_what_the_issue_asks_for() -> None:
    assert len(MIXED_LENGTHS) == 16
    assert (min(MIXED_LENGTHS), max(MIXED_LENGTHS)) == (8, 384)


def test_names_of_shapes() -> None:
    assert Case("tiny", 0.9, (128,) * 4, 1, (), "batch").shape == "4x128"
    assert Case("tiny", 0.9, (8, 9), 1, (), "mixed", together=False).shape == "2 mixed, one by one"


def test_engines_and_models_can_be_chosen() -> None:
    options = parser().parse_args(["model", "--engines", "sparselane", "--models", "minilm", "--threads", "1"])
    cases = chosen_cases(options)
    assert cases
    assert {(case.model, case.engines) for case in cases} == {("minilm", ("sparselane",))}
    options = parser().parse_args(["model", "--purposes", "headline", "mixed", "--threads", "2"])
    assert {case.purpose for case in chosen_cases(options)} == {"headline", "mixed"}


def test_help_names_the_levels(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["--help"])
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("kernel:", "model:", "http:", "--quick", "--cache"))


def test_padding_and_back() -> None:
    batch = Batch(((1, 2, 3), (4,)))
    ids, mask = batch.padded()
    assert ids.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.without_padding(ids[:, :, None]).tolist() == [[1], [2], [3], [4]]
    assert [array.tolist() for array in batch.ragged()] == [[1, 2, 3, 4], [3, 1]]


@pytest.mark.parametrize("name", sorted(kernel_products.PATTERNS))
def test_random_weights_have_the_pattern_and_the_density(name: str) -> None:
    weights = kernel_products.random_weights(64, 128, 0.25, name)
    height, width = kernel_products.PATTERNS[name]
    blocks = weights.reshape(64 // height, height, 128 // width, width) != 0
    assert np.array_equal(blocks.all(axis=(1, 3)), blocks.any(axis=(1, 3)))
    assert 0.15 < np.count_nonzero(weights) / weights.size < 0.35
    assert np.abs(weights.astype(int)).max() <= 64


def test_bytes_moved_count_weights_input_and_sums() -> None:
    weights = np.zeros((4, 8), np.int8)
    weights[0, :4] = 1
    activations = 32 * (8 + 4 * 4)
    assert kernel_products.bytes_moved("survivors", weights, 1) == 12 + activations
    assert kernel_products.bytes_moved("blocks_1x4", weights, 1) == 6 + activations
    assert kernel_products.bytes_moved("dense", weights, 2) == 32 + 2 * activations
