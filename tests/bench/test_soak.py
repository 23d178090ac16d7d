"""The soak: slices, what counts as growth, and a few seconds of the real thing."""

from pathlib import Path

import pytest

from bench import soak
from bench.load_generator import Outcome
from bench.record import read_rows, write_rows
from bench.report import write_report


def test_slices_are_by_the_time_of_departure() -> None:
    outcomes = [Outcome(second, 0.01 * (1 + second // 10), "timeout" if second == 25 else "") for second in range(30)]
    rows = list(soak.slices(outcomes, 1.0))
    assert [(row["second"], row["requests"], row["errors"]) for row in rows] == [(0, 10, 0), (10, 10, 0), (20, 10, 1)]
    assert [row["p50_s"] for row in rows] == pytest.approx([0.01, 0.02, 0.03])


def test_growth_leaves_out_the_first_quarter() -> None:
    samples = [{"resident_bytes": size} for size in (*range(25), *[100] * 50, *[130] * 25)]
    assert soak.growth(samples) == (100, 130)
    assert soak.growth(samples[:1]) == (0, 0)


def test_a_few_seconds_of_soak_make_a_record(tmp_path: Path) -> None:
    notes: list[str] = []
    memory, load = soak.measure(1, 3 / 60, notes.append)
    assert len(memory) >= 2
    assert all(row["resident_bytes"] > 50e6 and row["open_files"] > 5 for row in memory)
    assert sum(row["requests"] for row in load) > 3
    assert all("status" not in row["error_kinds"] and "answer" not in row["error_kinds"] for row in load)
    assert "% of what a closed loop reached" in notes[0]
    write_rows(tmp_path / "soak_memory.csv", memory)
    write_rows(tmp_path / "soak_load.csv", load)
    (tmp_path / "machine.txt").write_text("command: python -m bench soak\n")
    write_report(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "## Soak" in text
    assert "![soak](soak.png)" in text
    assert len(read_rows(tmp_path / "soak_memory.csv")) == len(memory)
