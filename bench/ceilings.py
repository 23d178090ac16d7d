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


# What bounds the inner step of an instruction set's products, survivors or not. NEON's unpacks are not measured.
_LIMITS = {
    ("avx2", True): "survivors step, maddubs+madd+add, 256 bit",
    ("avx2", False): "int8 maddubs+madd+add, 256 bit",
    ("avx_vnni", True): "survivors step, dpbusd, 256 bit",
    ("avx_vnni", False): "int8 dpbusd, 256 bit",
    ("avx512_vnni", True): "survivors step, dpbusd, 512 bit",
    ("avx512_vnni", False): "int8 dpbusd, 512 bit",
    ("amx_int8", True): "survivors step, dpbusd, 512 bit",
    ("amx_int8", False): "int8 dpbusd, 512 bit",
    ("neon", True): "int8 sdot, 128 bit",
    ("neon", False): "int8 sdot, 128 bit",
}


def step_limit(ceilings: dict[str, float], isa: str, name: str, density: float = 1.0) -> float | None:
    """Return the products per second that the inner step of a format could reach at most; None where not measured.

    For survivors: the step in registers, unpacks included. Formats that unpack less: the dot products alone. Masked: a
    matrix unit multiplies zeros too, so that only a share `density` of what it does are products.
    """
    if name == "masked":
        tiles = ceilings.get("int8 tdpbsud, tiles")
        return None if tiles is None else tiles * density
    return ceilings.get(_LIMITS.get((isa, name == "survivors"), ""))
