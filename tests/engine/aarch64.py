"""Runs a static 64-bit Arm Linux program inside this process, on unicorn's emulated CPU.

Of the system only `write` and `exit` are there: enough for tests/engine/cross/compare.cpp with bare.cpp.
"""

from __future__ import annotations

import struct
from pathlib import Path

import unicorn
from unicorn import arm64_const as arm64

PAGE = 0x1000
STACK, STACK_SIZE = 0x7F0000000, 1 << 20
LOAD = 1  # the program header of a part that belongs in memory
WRITE, EXIT, EXIT_GROUP = 64, 93, 94  # Linux's numbers of its system calls on this CPU


def load(program: bytes, emulator: unicorn.Uc) -> int:
    """Put an ELF file's parts where it wants them; return its first instruction's address."""
    magic, machine = program[:5], struct.unpack_from("<H", program, 18)[0]
    assert (magic, machine) == (b"\x7fELF\x02", 183), "not a 64-bit Arm program"
    entry, headers = struct.unpack_from("<QQ", program, 24)
    size, count = struct.unpack_from("<HH", program, 54)
    for header in range(headers, headers + size * count, size):
        kind, _, offset, address, _, in_file, in_memory, _ = struct.unpack_from("<IIQQQQQQ", program, header)
        if kind != LOAD:
            continue
        first, last = address // PAGE, (address + in_memory - 1) // PAGE
        taken = {page for begin, end, _ in emulator.mem_regions() for page in (begin // PAGE, end // PAGE)}
        first += first in taken  # two parts may share a page
        if last >= first:
            emulator.mem_map(first * PAGE, (last - first + 1) * PAGE)
        emulator.mem_write(address, program[offset : offset + in_file])
    return int(entry)


def run(program: Path) -> tuple[int, str]:
    """Return the exit status and what was written; an instruction that the CPU does not have is a UcError."""
    emulator = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
    emulator.ctl_set_cpu_model(arm64.UC_CPU_ARM64_MAX)  # the one that has the dot product
    entry = load(program.read_bytes(), emulator)
    emulator.mem_map(STACK - STACK_SIZE, STACK_SIZE)
    emulator.reg_write(arm64.UC_ARM64_REG_SP, STACK)
    emulator.reg_write(arm64.UC_ARM64_REG_CPACR_EL1, 3 << 20)  # float registers may be used
    written = bytearray()
    status = None

    def system_call(emulator: unicorn.Uc, _interrupt: int, _data: object) -> None:
        nonlocal status
        number, first, second, third = (
            emulator.reg_read(arm64.UC_ARM64_REG_X0 + register) for register in (8, 0, 1, 2)
        )
        if number == WRITE:
            written.extend(emulator.mem_read(second, third))
            emulator.reg_write(arm64.UC_ARM64_REG_X0, third)
            return
        status = first if number in (EXIT, EXIT_GROUP) else -1
        emulator.emu_stop()

    emulator.hook_add(unicorn.UC_HOOK_INTR, system_call)
    emulator.emu_start(entry, 0)
    assert status is not None, "stopped without an exit"
    return status, written.decode()
