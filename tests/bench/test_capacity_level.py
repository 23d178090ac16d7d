"""The capacity level: small, but everything real: the service under load, fleets, the report."""

from pathlib import Path

import pytest

from bench.capacity_level import QUICK, SHARES, WORKLOADS, measure
from bench.capacity_report import TIMELINES, write_capacity_report
from bench.record import write_rows


def test_a_quick_run_makes_a_record(tmp_path: Path) -> None:
    notes: list[str] = []
    found = dict(measure(QUICK, notes.append))
    load = found["load"]
    assert [(row["workload"], row["share"]) for row in load] == [
        (name, share) for name in WORKLOADS for share in SHARES
    ]
    assert all(row["requests"] > 0 for row in load)
    # All of them on a machine of one's own; one that is shared may stall longer than a request may take.
    assert any(row["errors"] == 0 and row["requests"] > 5 for row in load if row["share"] < 0.6)
    for row in found["steady"]:
        assert row["simulated_p50_s"] == pytest.approx(row["planned_p50_s"], rel=0.25)
    for name in TIMELINES:
        assert all(row["offered"] >= 0 and row["ready"] > 0 for row in found[name])
    for name, rows in found.items():
        write_rows(tmp_path / f"{name}.csv", rows)
    (tmp_path / "machine.txt").write_text("command: python -m bench capacity\n")
    write_capacity_report(tmp_path)
    text = (tmp_path / "README.md").read_text()
    for part in ("## Beside the real service", "## Beside the simulation", "## Fleets that are hit", "![p99](p99.png)"):
        assert part in text
    assert not list(tmp_path.glob("*.unfinished"))
