"""The generated part of docs/models.md: rows to Markdown, nothing else. Scores are in percent."""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.judge.quality import calibration_error
from bench.judge.records import Tables, fact, models, readings, tables
from bench.judge.sets import MOSTLY_SEEN
from bench.results import METRICS

BEGIN, END = "<!-- models: python -m bench.models report -->", "<!-- end of models -->"

Row = Mapping[str, Any]

_PARTS = {
    "embeddings": "embeddings",
    "encoder": "encoder's matrices",
    "norms": "encoder's norms",
    "head": "head",
    "tokenizer": "tokenizer",
    "on disk": "weights and tokenizer on disk",
}
_ONE = "artifact"
# What an artifact may lose of its dense teacher's score (Prune Once for All promises it).
GOAL = 0.01


def page(record: Path) -> str:
    """Return the Markdown of all models that have rows, then their hardest errors."""
    found = {name: tables(record, name) for name in models(record)}
    read = readings(record)
    lines = [*_overview(found)]
    for name, table in found.items():
        lines += _model(name, table)
    lines += ["## Appendix: the hardest errors, read by eye", ""]
    for name, table in found.items():
        lines += _errors(name, table, read)
    return "\n".join(lines).rstrip()


def _table(titles: Sequence[str], rows: Iterator[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(titles)} |",
        "|---" * len(titles) + "|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]


def _metric(table: Tables) -> str:
    return METRICS[fact(table, "metric")][0]


def _of_manifest(table: Tables, model: str) -> str:
    """The manifest's score of the dense or the sparse float model."""
    value = fact(table, model)
    return f"{METRICS[fact(table, 'metric')][1] * float(value):.1f}" if value else "not at hand"


def _share_lost(table: Tables) -> float | None:
    dense = fact(table, "dense")
    if "scores" not in table or not dense:
        return None
    main = table["scores"][0]
    for row in table.get("floats", ()):  # where they are of all its examples: the manifest's numbers are rounded
        if (row["set"], row["model"], row["examples"]) == (main["set"], _ONE, main["examples"]):
            return float(row["loss"]) / 100
    return 1 - float(main["score"]) / (METRICS[fact(table, "metric")][1] * float(dense))


def _goal(found: Mapping[str, Tables]) -> str:
    shares = {name: _share_lost(table) for name, table in found.items()}
    reach = [f"`{name}`" for name, share in shares.items() if share is not None and share < GOAL]
    miss = [f"`{name}`" for name, share in shares.items() if share is not None and share >= GOAL]
    return (
        f"The goal is to lose less than {100 * GOAL:.0f} % of the dense model's score: {' and '.join(reach) or 'none'} "
        f"reach it, {' and '.join(miss) or 'none'} miss it."
    )


def _with_interval(row: Row) -> str:
    return f"{float(row['score']):.1f} ({float(row['low']):.1f} to {float(row['high']):.1f})"


def _lost(row: Row) -> str:
    if not row.get("loss"):
        return ""
    return f"{float(row['loss']):.1f} % ({float(row['loss_low']):.1f} to {float(row['loss_high']):.1f})"


def _overview(found: Mapping[str, Tables]) -> list[str]:
    models = ["dense", "sparse, float32", "sparse int8: the artifact", "lost of dense"]
    titles = ["model", "judged on", "metric", *models, "zeros", "on disk"]

    def rows() -> Iterator[Sequence[str]]:
        for name, table in found.items():
            main = table["scores"][0] if "scores" in table else None
            disk = next((int(row["bytes"]) for row in table.get("size", ()) if row["part"] == "on disk"), 0)
            yield (
                f"[`{name}`](#{name})",
                f"{main['set']} ({int(main['examples']):,})" if main else "",
                _metric(table),
                _of_manifest(table, "dense"),
                _of_manifest(table, "sparse"),
                _with_interval(main) if main else "not measured",
                "not at hand" if (share := _share_lost(table)) is None else f"{100 * share:.1f} %",
                f"{100 * float(fact(table, 'sparsity')):.1f} %",
                f"{disk / 1e6:.1f} MB",
            )

    return [*_table(titles, rows()), _goal(found), ""]


def _model(name: str, table: Tables) -> list[str]:
    sections = (_origin, _scores, _floats, _calibration, _lengths, _robustness, _size, _latency)
    return [f"## {name}", "", *(line for section in sections for line in section(name, table))]


def _origin(_: str, table: Tables) -> list[str]:
    said = {name: fact(table, name) for name in ("task", "labels", "layers", "hidden", "window", "stride", "base")}
    minutes, seeds = fact(table, "minutes"), fact(table, "seeds")
    return [
        f"{said['task']}, {said['labels']} labels; {said['layers']} layers, {said['hidden']} wide, "
        f"{100 * float(fact(table, 'sparsity')):.1f} % zeros ({fact(table, 'pattern')}), windows of {said['window']} "
        f"tokens that share {said['stride']}. From `{said['base']}`, {minutes} minutes of training, seed {seeds}, "
        f"{fact(table, 'date')}; weights `{table['facts'][0]['weights']}`.",
        "",
        "Trained on:",
        "",
        *(f"* {one['name']}: {one['licence']}. {one['source']}" for one in json.loads(fact(table, "data"))),
        "",
    ]


def _scores(_: str, table: Tables) -> list[str]:
    if "scores" not in table:
        return []
    titles = ["set", "what it is", "examples", _metric(table), "calibration error", "seen in training"]

    def rows() -> Iterator[Sequence[str]]:
        for row in table["scores"]:
            of = f" of {int(row['of']):,}" if row["of"] != row["examples"] else ""
            error = f"{100 * calibration_error(table, row['set']):.1f}" if "calibration" in table else "not measured"
            yield row["set"], row["about"], f"{int(row['examples']):,}{of}", _with_interval(row), error, _seen(row)

    return _table(titles, rows())


def _seen(row: Row) -> str:
    if not row["seen"]:
        return "not at hand"
    share = 100 * float(row["seen"])
    return f"**{share:.0f} %: no test**" if share > 100 * MOSTLY_SEEN else f"{share:.1f} %"


def _floats(_: str, table: Tables) -> list[str]:
    if "floats" not in table:
        return ["The dense teacher and the sparse float32 model were not at hand to be judged beside on all sets.", ""]
    titles = ["on the same examples", "dense, float32", "sparse, float32", _ONE, f"{_ONE} loses of dense"]

    def rows() -> Iterator[Sequence[str]]:
        for name in dict.fromkeys(row["set"] for row in table["floats"]):
            found = {row["model"]: row for row in table["floats"] if row["set"] == name}
            scores = [_with_interval(found[m]) if m in found else "not at hand" for m in ("dense", "sparse")]
            ours = found[_ONE]
            yield f"{name}, {int(ours['examples']):,}", *scores, _with_interval(ours), _lost(ours)

    return _table(titles, rows())


def _calibration(name: str, table: Tables) -> list[str]:
    if "calibration" not in table:
        return []
    return [f"![How sure, and how often right](../bench/record/models/{name}/reliability.png)", ""]


def _lengths(_: str, table: Tables) -> list[str]:
    titles = ["tokens read", "examples", _metric(table)]
    rows = (
        (
            f"{int(row['tokens_above']) + 1} to {row['tokens_to']}",
            f"{int(row['examples']):,}",
            _with_interval(row),
        )
        for row in table.get("lengths", ())
    )
    return _table(titles, rows) if "lengths" in table else []


def _robustness(_: str, table: Tables) -> list[str]:
    titles = ["change of the text", "examples", "whose tokens change", _metric(table), "lost"]
    rows = (
        (row["change"], f"{int(row['examples']):,}", row["read_differently"], _with_interval(row), _lost(row))
        for row in table.get("robustness", ())
    )
    return _table(titles, rows) if "robustness" in table else []


def _size(_: str, table: Tables) -> list[str]:
    if "size" not in table:
        return []
    found = {row["part"]: row for row in table["size"]}

    def rows() -> Iterator[Sequence[str]]:
        for part, title in _PARTS.items():
            size, dense = int(found[part]["bytes"]), found[part]["dense_bytes"]
            ratio = f"{int(dense) / size:.1f}x" if dense else ""
            yield title, f"{size:,}", f"{int(dense):,}" if dense else "", ratio
        count = found["surviving weights"]
        values = int(count["bytes"]), int(count["dense_bytes"])
        yield (
            "encoder by the paper's count: surviving weights alone, a byte each",
            f"{values[0]:,}",
            f"{values[1]:,}",
            f"{values[1] / max(1, values[0]):.1f}x",
        )

    return _table(["part", "bytes", "dense float32", "smaller"], rows())


def _latency(_: str, table: Tables) -> list[str]:
    if "latency" not in table:
        return []
    seconds: dict[str, list[float]] = {}
    for row in table["latency"]:
        seconds.setdefault(row["model"], []).append(float(row["seconds"]))
    ours = seconds.pop(_ONE)

    def rows() -> Iterator[Sequence[str]]:
        yield _ONE, f"{1e3 * statistics.median(ours):.1f} ms", ""
        for name, theirs in seconds.items():
            ratios = [their / our for their, our in zip(theirs, ours, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            yield name, f"{1e3 * statistics.median(theirs):.1f} ms", f"{middle:.1f}x ({low:.1f} to {high:.1f})"

    tokens, cpu = (table["latency"][0][column] for column in ("tokens", "cpu"))
    return _table([f"{tokens} tokens, one thread, {cpu}", "median", "times as long (quartiles)"], rows())


def _errors(name: str, table: Tables, read: Mapping[tuple[str, str, str], str]) -> list[str]:
    if "errors" not in table:
        return []
    rows = (
        (
            *(row[column] for column in ("rank", "example", "expected", "found", "confidence")),
            read.get((name, row["example"], row["found"]), "not read yet"),
        )
        for row in table["errors"]
    )
    main = table["scores"][0]["set"] if "scores" in table else "its validation set"
    titles = ["", f"example of {main}", "expected", "found", "confidence", "reading"]
    return [f"### {name}: hardest errors", "", *_table(titles, rows)]
