"""Which thread goes first where CPUs are short: the one that answers probes and metrics.

It needs a few milliseconds now and then, and whoever asks it decides about the whole process. The event loop and the
engine share the rest evenly: each request needs both, and an engine that gives way to the event loop is starved by the
refusals of an overload (at twice the load on one CPU it answered half as many in time).

Linux lets every thread have a niceness of its own, which other containers, and other groups of a service manager, are
not concerned with.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

# About a fifth of the weight of what is not nice (kernel/sched/core.c: 215 of 1024).
NICENESS: Final = 7
MOST: Final = 19


def goes_first(thread: int) -> None:
    """Let all other threads of the process, and those that they start from now on, come after this one.

    thread: its number in the system, `threading.Thread.native_id`.
    """
    if sys.platform != "linux":  # elsewhere niceness belongs to processes
        return
    with suppress(OSError):  # a sandbox may have no /proc, or forbid it: then all are equals, as elsewhere
        wanted = min(MOST, os.getpriority(os.PRIO_PROCESS, thread) + NICENESS)
        for other in {int(task.name) for task in Path("/proc/self/task").iterdir()} - {thread}:
            with suppress(ProcessLookupError):  # it has ended
                os.setpriority(os.PRIO_PROCESS, other, wanted)
