"""Throttling and limits are read from both versions of cgroups, wherever the container mounts them."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from service.cgroup import CpuCollector, MemoryCollector, Throttling, memory_limit, throttling

V2 = "usage_usec 5\nnr_periods 10\nnr_throttled 4\nthrottled_usec 2500000\n"
V1 = "nr_periods 10\nnr_throttled 3\nthrottled_time 1500000000\n"


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def test_version_2_in_a_container_and_below_a_slice(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/\n")
    write(tmp_path, "sys/fs/cgroup/cpu.stat", V2)
    assert throttling(tmp_path) == Throttling(10, 4, 2.5)
    write(tmp_path, "proc/self/cgroup", "0::/a/b\n")
    write(tmp_path, "sys/fs/cgroup/a/b/cpu.stat", V2.replace("4", "7"))
    assert throttling(tmp_path) == Throttling(10, 7, 2.5), "the innermost group counts"


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_version_1(tmp_path: Path, mount: str) -> None:
    write(tmp_path, "proc/self/cgroup", f"4:{mount}:/docker/x\n0::/\n")
    write(tmp_path, f"sys/fs/cgroup/{mount}/cpu.stat", V1)
    assert throttling(tmp_path) == Throttling(10, 3, 1.5)


@pytest.mark.parametrize(
    "text",
    [None, "", "usage_usec 5\nuser_usec 3\n", "nr_throttled x\nthrottled_usec y\n", V2.replace("nr_periods", "nr_x")],
)
def test_without_counters_there_are_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        write(tmp_path, "sys/fs/cgroup/cpu.stat", text)
    assert throttling(tmp_path) is None
    assert b"throttled" not in page(tmp_path)
    assert b"sparselane_cpu_quota_cores" in page(tmp_path)


def test_the_page_has_quota_and_counters(tmp_path: Path) -> None:
    write(tmp_path, "sys/fs/cgroup/cpu.stat", V2)
    write(tmp_path, "sys/fs/cgroup/cpu.max", "50000 100000\n")
    shown = page(tmp_path).decode()
    assert "sparselane_cpu_quota_cores 0.5" in shown
    assert "sparselane_process_cpu_periods_total 10.0" in shown
    assert "sparselane_process_cpu_throttled_periods_total 4.0" in shown
    assert "sparselane_process_cpu_throttled_seconds_total 2.5" in shown


def test_the_smallest_memory_limit_on_the_way_up_counts(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/pod/container\n")
    write(tmp_path, "sys/fs/cgroup/memory.max", "max\n")
    write(tmp_path, "sys/fs/cgroup/pod/memory.max", "1000\n")
    assert memory_limit(tmp_path) == 1000
    write(tmp_path, "sys/fs/cgroup/pod/container/memory.max", "800\n")
    assert memory_limit(tmp_path) == 800
    assert b"sparselane_memory_limit_bytes 800.0" in page(tmp_path)


@pytest.mark.parametrize(("text", "limit"), [("536870912\n", 536870912), ("9223372036854771712\n", None), ("x", None)])
def test_memory_limit_of_version_1(tmp_path: Path, text: str, limit: int | None) -> None:
    write(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", text)
    assert memory_limit(tmp_path) == limit
    write(tmp_path, "proc/self/cgroup", "5:memory:/a/b\n0::/\n")
    write(tmp_path, "sys/fs/cgroup/memory/a/memory.limit_in_bytes", "4096\n")
    assert memory_limit(tmp_path) == 4096


def test_without_a_memory_limit_there_is_none(tmp_path: Path) -> None:
    assert memory_limit(tmp_path) is None
    assert b"memory_limit" not in page(tmp_path)


def page(root: Path) -> bytes:
    registry = CollectorRegistry()
    CpuCollector(registry, root)
    MemoryCollector(registry, root)
    return bytes(generate_latest(registry))
