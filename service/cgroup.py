"""What the kernel allows this process of the CPUs, and how often it was stopped for wanting more."""

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


@dataclass(frozen=True)
class Throttling:
    """Periods in which the group ran out of its quota, and seconds that it was stopped for then."""

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
            if name in values and "nr_throttled" in values:
                return Throttling(values["nr_throttled"], unit * values[name])
    return None


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
            name = "sparselane_process_cpu_throttled"
            text = "Periods of the CPU quota in which the process was stopped."
            yield CounterMetricFamily(f"{name}_periods", text, stopped.periods)
            text = "Time that the process was stopped for by the CPU quota."
            yield CounterMetricFamily(f"{name}_seconds", text, stopped.seconds)
