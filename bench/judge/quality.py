"""The measured numbers as a manifest's `quality` holds them: docs/artifact.md, section 1."""

from collections.abc import Mapping
from typing import Any

from bench.judge.calibration import Bin, expected_error
from bench.judge.records import Tables
from bench.results import METRICS


def quality(before: Mapping[str, Any], tables: Tables) -> dict[str, Any]:
    """Return a manifest's quality with what the rows say of the artifact; what is known of other models stays."""
    metric = before["metric"]
    factor = METRICS[metric][1]
    main, *others = tables["scores"]
    score = _number(main["score"], factor)
    scores: dict[str, dict[str, float]] = {"dense": {}, "sparse": {}, **(before.get("scores") or {})}
    for model in ("dense", "sparse"):
        scores[model] = scores[model] or ({} if before[model] is None else {metric: before[model]})
    scores["quantized"] = {**scores.get("quantized", {}), metric: score}
    return {
        **before,
        "examples": int(main["examples"]),
        "quantized": score,
        "scores": scores,
        "interval": _interval(main, factor),
        "calibration_error": calibration_error(tables, main["set"]),
        "others": [
            {
                "set": row["set"],
                "examples": int(row["examples"]),
                "quantized": _number(row["score"], factor),
                "interval": _interval(row, factor),
                "calibration_error": calibration_error(tables, row["set"]),
                "seen": float(row["seen"]) if row["seen"] else None,
            }
            for row in others
        ],
        "lengths": [
            {
                "tokens": [int(row["tokens_above"]) + 1, int(row["tokens_to"])],
                "examples": int(row["examples"]),
                "quantized": _number(row["score"], factor),
                "interval": _interval(row, factor),
            }
            for row in tables["lengths"]
        ],
        "robustness": [
            {
                "change": row["change"],
                "examples": int(row["examples"]),
                "quantized": _number(row["score"], factor),
                "interval": _interval(row, factor),
            }
            for row in tables["robustness"]
        ],
    }


def calibration_error(tables: Tables, name: str) -> float:
    """Return the expected calibration error on a set, as a share of 1."""
    return round(expected_error(calibration_bins(tables, name)) / 100, 4)


def calibration_bins(tables: Tables, name: str) -> list[Bin]:
    """Return the bins of a set."""
    rows = (row for row in tables["calibration"] if row["set"] == name)
    return [
        Bin(float(r["low"]), float(r["high"]), int(r["count"]), float(r["confidence"]), float(r["right"])) for r in rows
    ]


def _number(percent: str, factor: float) -> float:
    """Return a score on the metric's own scale, as `publish` rounds it."""
    return round(float(percent) / factor, 4)


def _interval(row: Mapping[str, str], factor: float) -> list[float]:
    return [_number(row["low"], factor), _number(row["high"], factor)]
