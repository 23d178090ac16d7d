"""What the kernel allows this process of CPUs and memory, and how often it was stopped for wanting more CPU."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

import engine

# The files' units: microseconds in version 2, nanoseconds in version 1
# (https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/scheduler/sched-bwc.html).
STOPPED_SECONDS: Final = {"throttled_usec": 1e-6, "throttled_time": 1e-9}
# Version 1 says "no limit" with the largest number of whole pages; no machine has an exabyte.
NO_LIMIT_BYTES: Final = 1 << 60


@dataclass(frozen=True)
class Throttling:
    """Periods of the quota so far, those in which the group ran out of it, and seconds that it was stopped for then."""

    all_periods: int
    periods: int
    seconds: float


def throttling(root: str | Path = "/") -> Throttling | None:
    """Read the counters of the innermost CPU group that has any; None where there is none. `root`: for tests."""
    for group in sorted(engine.cpu_groups(root), key=lambda group: -len(group.parts)):
        try:
            lines = (group / "cpu.stat").read_text().splitlines()
        except OSError:
            continue
        values = {name: int(value) for name, _, value in (line.partition(" ") for line in lines) if value.isdigit()}
        for name, unit in STOPPED_SECONDS.items():
            if values.keys() >= {name, "nr_periods", "nr_throttled"}:
                return Throttling(values["nr_periods"], values["nr_throttled"], unit * values[name])
    return None


def memory_limit(root: str | Path = "/") -> int | None:
    """Return after how many bytes the kernel kills the process; None where only the machine is the limit.

    `root`: for tests. In version 2 the limits of CPUs and memory lie in one folder, in version 1 they do not.
    """
    files = [group / "memory.max" for group in engine.cpu_groups(root)]
    files += [group / "memory.limit_in_bytes" for group in _memory_groups(Path(root))]
    return min((limit for path in files if (limit := _bytes(path)) is not None), default=None)


def _memory_groups(root: Path) -> list[Path]:
    """List where version 1 may have a limit: where it is mounted, then the way up from the process's group."""
    mount = root / "sys/fs/cgroup/memory"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    groups = [Path(line.split(":", 2)[2].lstrip("/")) for line in lines if ":memory:" in line]
    return [mount, *(mount / part for group in groups for part in (group, *group.parents))]


def _bytes(path: Path) -> int | None:
    try:
        value = int(path.read_text())
    except (OSError, ValueError):  # no such file, or "max": no limit
        return None
    return value if value < NO_LIMIT_BYTES else None


class CpuCollector(Collector):
    """The quota, and the counters where there are any, read at each scrape: a quota can be changed from outside."""

    def __init__(self, registry: CollectorRegistry, root: str | Path = "/") -> None:
        """Join a registry."""
        self._root = root
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Give the metrics."""
        quota = engine.cpu_quota(self._root)
        yield GaugeMetricFamily("sparselane_cpu_quota_cores", "CPUs that this process may keep busy.", quota)
        if stopped := throttling(self._root):
            text = "Periods of the CPU quota."
            yield CounterMetricFamily("sparselane_process_cpu_periods", text, stopped.all_periods)
            name = "sparselane_process_cpu_throttled"
            text = "Periods of the CPU quota in which the process was stopped."
            yield CounterMetricFamily(f"{name}_periods", text, stopped.periods)
            text = "Time that the process was stopped for by the CPU quota."
            yield CounterMetricFamily(f"{name}_seconds", text, stopped.seconds)


class MemoryCollector(Collector):
    """The memory limit where there is one, read at each scrape: it can be changed from outside."""

    def __init__(self, registry: CollectorRegistry, root: str | Path = "/") -> None:
        """Join a registry."""
        self._root = root
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Give the metric."""
        if (limit := memory_limit(self._root)) is not None:
            text = "Memory after which the kernel kills this process."
            yield GaugeMetricFamily("sparselane_memory_limit_bytes", text, limit)
