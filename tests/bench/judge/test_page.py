"""The page says what the rows say: a record of few rows, written by hand."""

import json
from pathlib import Path

import pytest

from bench.judge import records
from bench.judge.page import page
from bench.judge.quality import calibration_error, quality

FACTS = {
    **{"task": "text-classification", "labels": 2, "base": "made up", "layers": 1, "hidden": 8, "sparsity": 0.9},
    **{"pattern": "unstructured", "window": 64, "stride": 8, "metric": "accuracy", "dense": 0.9, "sparse": ""},
    **{"train_file": "x", "data": json.dumps([{"name": "Reviews", "licence": "CC0", "source": "here"}])},
    **{"seeds": "1", "minutes": 3, "date": "2026-01-01"},
}
SCORE = {"score": 81.0, "low": 78.5, "high": 83.25}
MAIN = {"set": "reviews dev", "files": "a.tsv", "about": "films", "examples": 1000, "of": 1000, **SCORE, "seen": 0.002}
SEEN = {**MAIN, "set": "posts", "about": "seen", "of": 5000, "seen": 1.0}
BINS = [
    {"set": "reviews dev", "low": 0.6, "high": 0.6667, "count": 300, "confidence": 0.65, "right": 0.55},
    {"set": "reviews dev", "low": 0.9333, "high": 1.0, "count": 700, "confidence": 0.99, "right": 0.92},
    {"set": "posts", "low": 0.9333, "high": 1.0, "count": 10, "confidence": 1.0, "right": 1.0},
]
FLOATS = [
    {"set": "reviews dev", "model": "dense", "examples": 500, **SCORE, "loss": 0.0, "loss_low": 0.0, "loss_high": 0.0},
    {"set": "reviews dev", "model": "artifact", "examples": 500, **SCORE, "loss": 2.5, "loss_low": 1.0, "loss_high": 4},
]
TIMES = [(1.0, 2.0), (1.0, 4.0), (2.0, 6.0)]
LATENCY = [
    {"round": number, "model": model, "tokens": 64, "seconds": f"{seconds * 1e-3:.3e}", "cpu": "Z80"}
    for number, pair in enumerate(TIMES)
    for model, seconds in zip(("artifact", "dense int8, our engine"), pair, strict=True)
]
ERRORS = [
    {"rank": 1, "example": "7", "expected": "bad", "found": "good", "confidence": 0.99},
    {"rank": 2, "example": "9", "expected": "good", "found": "bad", "confidence": 0.98},
]
CHANGES = [
    {"change": "typos", "examples": 100, "read_differently": 60, **SCORE, "loss": 1, "loss_low": 0, "loss_high": 2}
]


@pytest.fixture
def record(tmp_path: Path) -> Path:
    facts = [{"fact": name, "value": value} for name, value in FACTS.items()]
    lengths = [{"tokens_above": 0, "tokens_to": 8, "examples": 1000, **SCORE}]
    rows = {"facts": facts, "scores": [MAIN, SEEN], "calibration": BINS, "lengths": lengths, "robustness": CHANGES}
    for name, found in (rows | {"floats": FLOATS, "latency": LATENCY, "errors": ERRORS}).items():
        records.keep(tmp_path, "reviews", name, "abc", found)
    (tmp_path / "readings.csv").write_text('model,example,found,reading\nreviews,7,good,"irony, twice"\n')
    return tmp_path


@pytest.mark.parametrize(
    "line",
    [
        "| [`reviews`](#reviews) | reviews dev (1,000) | accuracy | 90.0 | not at hand "
        "| 81.0 (78.5 to 83.2) | 10.0 % | 90.0 % | 0.0 MB |",
        "* Reviews: CC0. here",
        # 0.3 x 10 points and 0.7 x 7 points.
        "| reviews dev | films | 1,000 | 81.0 (78.5 to 83.2) | 7.9 | 0.2 % |",
        "| posts | seen | 1,000 of 5,000 | 81.0 (78.5 to 83.2) | 0.0 | **100 %: no test** |",
        "The goal is to lose less than 1 % of the dense model's score: none reach it, `reviews` miss it.",
        "| reviews dev, 500 | 81.0 (78.5 to 83.2) | not at hand | 81.0 (78.5 to 83.2) | 2.5 % (1.0 to 4.0) |",
        "| 1 to 8 | 1,000 | 81.0 (78.5 to 83.2) |",
        "| typos | 100 | 60 | 81.0 (78.5 to 83.2) | 1.0 % (0.0 to 2.0) |",
        # The ratios within a round are 2, 4 and 3.
        "| 64 tokens, one thread, Z80 | median | times as long (quartiles) |",
        "| dense int8, our engine | 4.0 ms | 3.0x (2.0 to 4.0) |",
        "| 1 | 7 | bad | good | 0.99 | irony, twice |",
        "| 2 | 9 | good | bad | 0.98 | not read yet |",
    ],
)
def test_a_line(record: Path, line: str) -> None:
    assert line in page(record).splitlines()


def test_what_is_lost_is_that_of_all_the_examples_where_it_was_measured(record: Path) -> None:
    """The manifest's scores are rounded: 0.754 % came out as 0.7 in one table and as 0.8 in another."""
    records.keep(record, "reviews", "floats", "abc", [{**row, "examples": 1000} for row in FLOATS])
    assert "| 81.0 (78.5 to 83.2) | 2.5 % | 90.0 % | 0.0 MB |" in page(record)


def test_rows_of_other_weights_are_left_out(record: Path) -> None:
    assert records.is_done(record, "reviews", "errors", "abc")
    records.keep(record, "reviews", "errors", "former", ERRORS)
    assert not records.is_done(record, "reviews", "errors", "abc")
    assert "hardest errors" not in page(record).partition("## Appendix")[2].partition("\n")[2]


def test_a_manifest_gets_the_numbers_on_its_own_scale(record: Path) -> None:
    before = {"dataset": "reviews", "split": "dev", "metric": "accuracy", "dense": 0.9, "sparse": None, "examples": 5}
    tables = records.tables(record, "reviews")
    found = quality({**before, "quantized": 0.1}, tables)
    assert {name: found[name] for name in before} == {**before, "examples": 1000}
    assert (found["quantized"], found["interval"], found["calibration_error"]) == (0.81, [0.785, 0.8325], 0.079)
    assert found["scores"] == {"dense": {"accuracy": 0.9}, "sparse": {}, "quantized": {"accuracy": 0.81}}
    assert found["others"][0]["set"] == "posts" and found["others"][0]["seen"] == 1
    assert found["lengths"] == [{"tokens": [1, 8], "examples": 1000, "quantized": 0.81, "interval": [0.785, 0.8325]}]
    assert quality(found, tables) == found, "once more changes nothing"
    assert calibration_error(tables, "posts") == 0
