"""The machine's measured limits: compiles and runs ceilings.cpp with the system's compiler."""

import json
import os
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

SOURCE = Path(__file__).with_suffix(".cpp")


class NoCeilingsError(Exception):
    """The limits could not be measured; the message is the reason."""


def measure_ceilings() -> dict[str, float]:
    """Return operations or bytes per second by name, one thread. Raises NoCeilingsError."""
    compiler = os.environ.get("CXX", "c++")
    with TemporaryDirectory() as folder:
        program = Path(folder) / "ceilings"
        try:
            for command in (
                [compiler, "-O3", "-march=native", "-std=c++20", str(SOURCE), "-o", str(program)],
                [str(program)],
            ):
                done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            raise NoCeilingsError(f"{compiler}: {type(error).__name__}") from error
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def int8_peak(ceilings: dict[str, float], isa: str) -> float | None:
    """Return the products per second that an instruction set could reach at most; None where not measured."""
    names = {
        "avx2": "int8 maddubs+madd+add, 256 bit",
        "avx-vnni": "int8 dpbusd, 256 bit",
        "avx512-vnni": "int8 dpbusd, 512 bit",
        "neon-dot": "int8 sdot, 128 bit",
    }
    return ceilings.get(names.get(isa.replace("_", "-"), ""))
