"""From samples to numbers: medians, spread, ratios. Takes rows of models.csv, as text or as measured."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench.engines import OURS

# What makes two rows the same case.
CASE = ("model", "sparsity", "shape", "threads")
CaseKey = tuple[str, ...]


@dataclass(frozen=True)
class Timing:
    """All samples of one engine in one case, in seconds by round."""

    by_round: Mapping[int, float]

    @property
    def median(self) -> float:
        """The middle sample."""
        return median(self.by_round.values())

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median; 0 for fewer than three samples."""
        values = sorted(self.by_round.values())
        return (quantile(values, 0.75) - quantile(values, 0.25)) / 2 / self.median if len(values) > 2 else 0.0


@dataclass(frozen=True)
class CaseSummary:
    """What is known of one case: times by engine, and reasons where there is none."""

    purpose: str
    tokens: int
    timings: Mapping[str, Timing]
    missing: Mapping[str, str]
    note: str = ""  # on our engine

    def ratio(self, peer: str) -> float | None:
        """Return how many times faster we are than a peer: the median of the ratios within each round.

        Within a round both met the same noise, so it cancels; a ratio of medians would not do that.
        """
        if peer not in self.timings or OURS not in self.timings:
            return None
        ours, theirs = self.timings[OURS].by_round, self.timings[peer].by_round
        ratios = [theirs[number] / ours[number] for number in ours if number in theirs]
        return median(ratios) if ratios else None


def summarize(rows: Iterable[Mapping[str, Any]]) -> dict[CaseKey, CaseSummary]:
    """Group rows by case, in order of appearance."""
    cases: dict[CaseKey, dict[str, Any]] = {}
    for row in rows:
        key = tuple(str(row[name]) for name in CASE)
        case = cases.setdefault(
            key, {"purpose": row["purpose"], "tokens": int(row["tokens"]), "samples": {}, "missing": {}, "note": ""}
        )
        if row["engine"] == OURS:
            case["note"] = row.get("note") or case["note"]
        if row["status"] == "ok":
            case["samples"].setdefault(row["engine"], {})[int(row["round"])] = float(row["seconds"])
        else:
            case["missing"][row["engine"]] = f"{row['status']}: {row['reason']}"
    return {
        key: CaseSummary(
            case["purpose"],
            case["tokens"],
            {engine: Timing(samples) for engine, samples in case["samples"].items()},
            case["missing"],
            case["note"],
        )
        for key, case in cases.items()
    }


def condense(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Make one row of all rounds of a workload and rate of http.csv: middle values, but the longest of `max`.

    Requests and errors are added up; `answered_least` and `answered_most` are the extremes of the rounds.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((str(row["workload"]), str(row["share"])), []).append(row)
    return [_condensed(group) for group in groups.values()]


def _condensed(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    made = {name: str(value) for name, value in rows[0].items()}
    for name in made:
        if name in ("requests", "refused", "errors"):
            made[name] = str(sum(int(row[name]) for row in rows))
        elif name.endswith(("_s", "_rate")):
            values = [float(row[name]) for row in rows if row[name] != ""]
            middle = max if name.endswith("_max_s") else median
            made[name] = str(middle(values)) if values else ""
    made["error_kinds"] = "; ".join(dict.fromkeys(str(row["error_kinds"]) for row in rows if row["error_kinds"]))
    answered = [float(row["answered_rate"]) for row in rows]
    return made | {"answered_least": str(min(answered)), "answered_most": str(max(answered))}


def quantile(values: list[float], share: float) -> float:
    """Interpolate between sorted values; raises ValueError for none."""
    if not values:
        raise ValueError("a quantile needs at least one value")
    place = share * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])
