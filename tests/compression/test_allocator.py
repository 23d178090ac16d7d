"""Freed memory stays: tensors of the next step cost no new pages."""

import platform
import subprocess
import sys

import pytest

# New pages that ten blocks of 48 MiB cost, made and freed one after another, as in a training step.
PAGES = """
import resource, sys
from compression.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
bytearray(48 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    block = b"1" * (48 << 20)
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(how: str) -> int:
    command = [sys.executable, "-c", PAGES, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_freed_memory_is_used_again_without_new_pages() -> None:
    assert pages("kept") < pages("given back") / 2
