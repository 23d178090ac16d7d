"""Keeps the memory that a training step frees with the process, for the next step."""

import ctypes
from typing import Final

# Parameters of glibc's mallopt(3), from its malloc.h.
_TRIM_THRESHOLD: Final = -1
_MOST_MAPPINGS: Final = -4


def keep_freed_memory() -> bool:
    """Tell glibc neither to give freed memory back to the system nor to map large blocks one by one.

    A step makes and frees hundreds of tensors of megabytes. Each one mapped anew is pages that the system clears and
    hands over one after another: up to a quarter of a step on a CPU, more on a virtual machine. The peak stays the
    same. Returns False where the C library is another one, which does as it always does.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
        ctypes.CDLL(None).gnu_get_libc_version  # noqa: B018, musl has a mallopt of its own that ignores all of this
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_MOST_MAPPINGS, 0) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))
