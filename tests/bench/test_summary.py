"""Statistics of samples: medians, spread, ratios within rounds, and what has no time."""

from typing import Any

import pytest

from bench.summary import Timing, quantile, summarize


def row(engine: str, number: int, seconds: float, **other: Any) -> dict[str, Any]:
    case = {"purpose": "headline", "model": "tiny", "sparsity": 0.9, "shape": "1x8", "threads": 1, "tokens": 8}
    return case | {"engine": engine, "status": "ok", "round": number, "seconds": seconds, "reason": ""} | other


def test_quantiles_interpolate() -> None:
    assert quantile([1.0, 2.0, 3.0], 0.5) == 2.0
    assert quantile([1.0, 2.0], 0.25) == 1.25
    assert quantile([5.0], 0.99) == 5.0


def test_a_quantile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        quantile([], 0.5)


def test_median_and_spread() -> None:
    timing = Timing(dict(enumerate([1.0, 2.0, 3.0, 4.0, 100.0])))
    assert timing.median == 3.0
    assert timing.spread == pytest.approx((4.0 - 2.0) / 2 / 3.0)
    assert Timing({0: 1.0, 1: 9.0}).spread == 0.0


def test_the_ratio_is_taken_within_rounds() -> None:
    """Noise that hits a whole round leaves the ratio as it is."""
    rows = [row("sparselane", n, slow) for n, slow in enumerate([1.0, 10.0, 1.0])]
    rows += [row("torch-fp32", n, 3 * slow) for n, slow in enumerate([1.0, 10.0, 1.0])]
    (case,) = summarize(rows).values()
    assert case.ratio("torch-fp32") == pytest.approx(3.0)
    assert case.ratio("openvino-fp32") is None


def test_rounds_that_one_engine_lacks_do_not_count() -> None:
    rows = [row("sparselane", 0, 1.0), row("sparselane", 1, 1.0), row("torch-fp32", 1, 4.0)]
    (case,) = summarize(rows).values()
    assert case.ratio("torch-fp32") == 4.0


def test_an_engine_without_a_time_keeps_its_reason() -> None:
    rows = [row("sparselane", 0, 1.0), row("deepsparse-int8", 0, 0.0, status="mismatch", reason="cosine below 0.99")]
    (case,) = summarize(rows).values()
    assert case.missing == {"deepsparse-int8": "mismatch: cosine below 0.99"}
    assert "deepsparse-int8" not in case.timings


def test_text_as_read_from_csv_gives_the_same() -> None:
    rows = [row("sparselane", 0, 0.5), row("torch-fp32", 0, 1.5)]
    as_text = [{name: str(value) for name, value in one.items()} for one in rows]
    assert summarize(rows) == summarize(as_text)
