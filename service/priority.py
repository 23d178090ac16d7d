"""Which threads go first where CPUs are short: those that read requests and answer probes, before the engine's.

A call of the engine keeps all its CPUs busy for milliseconds to a second; what else the service does takes fractions of
one, mostly while somebody waits. Linux lets every thread have a niceness of its own, and whoever runs in another
container or another group of the service manager is not concerned.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path
from threading import get_native_id
from typing import Final

# About a fifth of the weight of what is not nice (kernel/sched/core.c: 215 of 1024).
NICENESS: Final = 7
MOST: Final = 19
# How engine/src/pool.cpp names its threads.
ENGINE_THREADS: Final = "sparselane/"


def give_way() -> None:
    """Let this thread, and those that it starts from now on, come after the others of the process."""
    _be_nice(get_native_id())


def engine_gives_way() -> None:
    """Let the threads of all loaded models come after the others of the process."""
    if sys.platform != "linux":
        return
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # a thread may end at any time
            if (task / "comm").read_text().startswith(ENGINE_THREADS):
                _be_nice(int(task.name))


def _be_nice(thread: int) -> None:
    if sys.platform != "linux":  # elsewhere niceness belongs to processes
        return
    wanted = min(MOST, os.getpriority(os.PRIO_PROCESS, os.getpid()) + NICENESS)
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, wanted)
