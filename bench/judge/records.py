"""Where the rows lie: bench/record/models/MODEL/MEASUREMENT.csv, each row with the weights that it is about."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.record import read_rows, write_rows

Tables = Mapping[str, list[dict[str, str]]]


def is_done(record: Path, model: str, measurement: str, weights: str) -> bool:
    """Whether the measurement of these very weights is there."""
    rows = read_rows(record / model / f"{measurement}.csv")
    return bool(rows) and rows[0]["weights"] == weights


def keep(record: Path, model: str, measurement: str, weights: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the rows of a finished measurement."""
    found = [{"weights": weights, **row} for row in rows]
    (record / model).mkdir(parents=True, exist_ok=True)
    write_rows(record / model / f"{measurement}.csv", found)


def models(record: Path) -> list[str]:
    """Return the names of the models that have rows, sorted."""
    return sorted(path.parent.name for path in record.glob("*/facts.csv"))


def tables(record: Path, model: str) -> Tables:
    """Read what was measured of a model's present weights, by measurement; rows of earlier weights are left out."""
    facts = read_rows(record / model / "facts.csv")
    found = {path.stem: read_rows(path) for path in sorted((record / model).glob("*.csv"))}
    return {name: rows for name, rows in found.items() if rows and rows[0]["weights"] == facts[0]["weights"]}


def fact(table: Tables, name: str) -> str:
    """Return one of a model's facts; empty where its manifest does not say."""
    return next(row["value"] for row in table["facts"] if row["fact"] == name)


def readings(record: Path) -> dict[tuple[str, str, str], str]:
    """Return what a person wrote about errors, by model, example and what the model found."""
    rows = read_rows(record / "readings.csv")
    return {(row["model"], row["example"], row["found"]): row["reading"] for row in rows}
