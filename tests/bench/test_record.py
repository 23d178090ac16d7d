"""The record: CSV there and back, machine.txt without private names, README and pictures from rows."""

import getpass
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bench import record
from bench.record import machine_text, read_rows, without_paths, write_rows
from bench.report import write_report

CASE = {"model": "tiny", "sparsity": 0.9, "shape": "1x8", "tokens": 8, "batch": 1, "longest": 8, "threads": 1}
OTHER = {"isa": "avx2", "rows": 768, "columns": 768, "status": "ok", "best_s": 1e-5, "median_s": 1e-5}
QUANTILES = {"p50": 0.002, "p95": 0.004, "max": 0.030}
KERNEL = OTHER | {"products_per_s": 6e10, "bytes_moved": 1, "bytes_per_s": 1e9, "share_of_limit": 0.5}


def sample(engine: str, number: int, seconds: float, **other: object) -> dict[str, object]:
    kept = {"engine": engine, "status": "ok", "round": number, "seconds": seconds, "calls": 1, "reason": ""}
    return {"purpose": "headline"} | CASE | kept | other


def test_rows_come_back_as_text_and_missing_columns_as_nothing(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.csv", [{"x": 1}, {"x": 2, "why": 'a "quoted", reason'}])
    assert read_rows(tmp_path / "a.csv") == [{"x": "1", "why": ""}, {"x": "2", "why": 'a "quoted", reason'}]
    assert read_rows(tmp_path / "b.csv") == []
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_machine_text_names_no_host_user_or_path() -> None:
    text = machine_text("python -m bench model --cache /some/where/cache", {"main": Path(sys.executable)}, (1, 2, 3))
    assert "--cache cache\n" in text
    assert not re.search(r"(?<![\w.])/\w", text)
    lines = [line for line in text.splitlines() if not line.startswith(("flags", "packages"))]
    words = set(re.findall(r"[\w.-]+", "\n".join(lines)))
    assert not words & ({socket.gethostname(), getpass.getuser()} - {"root"})
    for name in (
        "command",
        "date",
        "commit",
        "cpu",
        "cache",
        "kernel",
        "load average before",
        "packages, main",
        "flags",
    ):
        assert re.search(rf"^{name}: \S", text, re.MULTILINE), name


def test_a_record_is_no_change_of_the_tree_that_it_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def commit() -> str:
        return machine_text("bench", {}, (1, 2, 3)).partition("\ncommit: ")[2].partition("\n")[0]

    def git(*arguments: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True)

    monkeypatch.setattr(record, "ROOT", tmp_path)
    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message", "a")
    (tmp_path / "bench/record/2026-01-01_CPU").mkdir(parents=True)
    (tmp_path / "bench/record/2026-01-01_CPU/machine.txt").write_text("x")
    assert re.fullmatch("[0-9a-f]{7,}", commit())
    (tmp_path / "bench/plan.py").write_text("x")
    assert commit().endswith(", with changes")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("--cache=/a/b/c", "--cache=c"),
        ("bench/record/x", "bench/record/x"),
        ("../x", "../x"),
        ("'/a b'", "'a b'"),
    ],
)
def test_only_absolute_paths_are_shortened(text: str, wanted: str) -> None:
    assert without_paths(text) == wanted


def test_the_report_shows_ratios_reasons_and_pictures(tmp_path: Path) -> None:
    (tmp_path / "machine.txt").write_text("command: python -m bench\ncpu: Some CPU\nflags: a b\n")
    rows = [sample("sparselane", n, 0.010) for n in range(3)] + [sample("torch-fp32", n, 0.080) for n in range(3)]
    rows[0]["note"] = "some_kernels: 72 survivors"
    rows += [sample("sparselane", 0, 0.006, threads=2), sample("torch-fp32", 0, 0.050, threads=2)]
    rows += [sample("sparselane", 0, 0.02, shape="1x8, one by one"), sample("sparselane", 0, 0.012, sparsity=0.7)]
    rows.append(sample("deepsparse-int8", 0, 0, status="absent", reason="not installed"))
    write_rows(tmp_path / "models.csv", rows)
    write_rows(tmp_path / "idle.csv", [{"engine": "sparselane", "idle_share": 0.001}])
    sizes = {"model": "bert-large", "resident_bytes": 158e6}
    write_rows(tmp_path / "footprint.csv", [sizes | {"what": "engine", "round": 0, "seconds": 0.8}])
    write_rows(tmp_path / "ceilings.csv", [{"limit": "read 24 KiB", "per_second": 1.2e11}])
    kernels = [
        KERNEL | {"format": name, "density": density, "wanted_density": density, "tiles": 4}
        for name in ("survivors", "dense")
        for density in (0.1, 0.3)
    ]
    broken = OTHER | {"format": "blocks_1x4", "density": 0.1, "wanted_density": 0.1, "tiles": 1, "status": "mismatch"}
    write_rows(tmp_path / "kernels.csv", [*kernels, broken])
    load = {"workload": "qa", "share": 0.5, "offered_rate": 10, "answered_rate": 10, "requests": 80, "errors": 0}
    load |= {"p50_s": 0.01, "p95_s": 0.02, "p99_s": "", "short_p99_s": 0.03, "long_p99_s": "", "refused": 20}
    probes = {f"{path}_{q}_s": one for path in ("readyz", "metrics") for q, one in QUANTILES.items()}
    write_rows(tmp_path / "http.csv", [load | probes | {"error_kinds": ""}])
    times = {"total_s": 0.005, "engine_s": 0.004, "overhead_s": 0.00091, "text_s": 0.0004, "http_s": 0.00051}
    write_rows(tmp_path / "http_alone.csv", [{"workload": "qa", "kind": "short"} | times])
    write_report(tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| tiny | 90 % | 1x8 | 1 | 10.00 | 8.00x |" in text
    assert "| tiny | 90 % | 1x8 | 1 | some_kernels: 72 survivors |" in text
    assert "sparselane 1.67x, torch-fp32 1.60x" in text
    assert "| tiny | 1x8 | 1 | 2.00x |" in text
    assert "* deepsparse-int8, 1 cases: absent: not installed" in text
    assert "| bert-large | engine | 0.80 (0.80 to 0.80) | 1.5 | 158 | 250 |" in text
    assert "mismatch" in text
    assert "| qa | short | 5.00 | 4.00 | 0.91 | 0.40 | 0.51 |" in text
    assert "| qa | 50 % | 10 | 10 | 25 % | 10 | 20 |  | 30 |  | 2 / 4 / 30 | 2 / 4 / 30 | 80 | 0 |" in text
    for name in ("headline", "sparsity", "crossover", "http"):
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
        assert f"![{name}]({name}.png)" in text
    assert not list(tmp_path.glob("*.unfinished"))


def test_rounds_of_load_are_shown_by_their_medians(tmp_path: Path) -> None:
    """And what is left at twice the load is a share of the best median, not of the luckiest round."""
    (tmp_path / "machine.txt").write_text("cpu: one\n")
    quantiles = dict.fromkeys(("p50_s", "p95_s", "p99_s", "short_p99_s", "long_p99_s"), 0.1)
    quantiles |= {f"{path}_{q}_s": one for path in ("readyz", "metrics") for q, one in QUANTILES.items()}
    rows = [
        {"workload": "qa", "share": share, "round": number, "offered_rate": 100 * share, "answered_rate": answered}
        | quantiles
        | {"metrics_max_s": 0.01 * number, "requests": 200, "refused": 20, "errors": errors, "error_kinds": kinds}
        for share, found in ((1.0, (100, 90, 300)), (2.0, (60, 95, 96)))
        for number, answered in enumerate(found, 1)
        for errors, kinds in [(1, "status 504: 1") if (number, share) == (3, 2.0) else (0, "")]
    ]
    write_rows(tmp_path / "http.csv", rows)
    write_report(tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    times = "100 | 100 | 100 | 100 | 100 | 2 / 4 / 30 | 2 / 4 / 30"
    assert f"| qa | 100 % | 100 | 100 (90 to 300) | 10 % | {times} | 600 | 0 |" in text
    assert f"| qa | 200 % | 200 | 95 (60 to 96) | 10 % | {times} | 600 | 1 status 504: 1 |" in text
    assert "Medians of 3 rounds" in text and "of the most at any rate: qa 95 %." in text
