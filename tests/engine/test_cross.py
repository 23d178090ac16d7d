"""Kernels for CPUs that this machine may not have: cross/compare.cpp runs them beside the reference, byte for byte.

Three ways, each with what `make setup` installs:

* compiled for 64-bit Arm by zig's clang, run on unicorn's emulated CPU (and on qemu's, where that is installed);
* compiled for this machine, with SIMDe in place of the instructions that it lacks;
* compiled for this machine with its own instructions, under AddressSanitizer and UndefinedBehaviorSanitizer.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import simde_py

from engine import supported_isas
from tests.engine import aarch64

SOURCES = Path(__file__).parents[2] / "engine" / "src"
CROSS = Path(__file__).parent / "cross"
# As in CMakeLists.txt: the language, and what makes floats independent of the compiler.
COMMON = ["-std=c++20", "-ffp-contract=off", "-fno-math-errno", f"-I{SOURCES}", "-Wall", "-Wextra"]
COMPILER = shlex.split(os.environ.get("CXX", "c++"))
ZIG = [sys.executable, "-m", "ziglang"]
ARM = [*ZIG, "c++", "-target", "aarch64-linux-gnu", "-g0", "-ffunction-sections", "-Werror", "-DSPARSELANE_NEON"]
# zig's words for nothing beyond Armv8.0, and for CMakeLists.txt's -march=armv8.2-a+dotprod.
ARM_CPU, ARM_CPU_OF_NEON = "-mcpu=generic", "-mcpu=generic+v8_2a+dotprod"
AVX2 = ["-mavx2", "-mfma"]
X86_FLAGS = {
    "avx2": AVX2,
    "avx_vnni": [*AVX2, "-mavxvnni"],
    "avx512_vnni": [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni"],
}
X86_FLAGS["amx_int8"] = [*X86_FLAGS["avx512_vnni"], "-mavx512vbmi2", "-mpopcnt", "-mamx-tile", "-mamx-int8"]
# Every program is these and the kernels that it is to compare; compare.cpp runs so many functions of each.
PARTS = [SOURCES / "kernels_reference.cpp", SOURCES / "packed.cpp", CROSS / "compare.cpp"]
FUNCTIONS = 17

needs_avx2 = pytest.mark.skipif("avx2" not in supported_isas(), reason="SIMDe is compiled for AVX2 and FMA here")


def run(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, f"{shlex.join(command)}\n{result.stdout}{result.stderr[:10_000]}"
    return result.stdout


def compile_with(command: list[str], source: Path, folder: Path, optimize: str = "-O2") -> Path:
    result = folder / f"{source.stem}.o"
    run([*command, *COMMON, optimize, "-c", str(source), "-o", str(result)])
    return result


def link(command: list[str], objects: Iterable[Path], program: Path) -> Path:
    run([*command, *map(str, objects), "-o", str(program)])
    return program


def check(output: str, *names: str) -> None:
    """Every function of these tables was compared, and none differed."""
    *lines, last = output.splitlines()
    assert last == "all the same", output
    assert len(lines) == len(names) * FUNCTIONS, output
    for name in names:
        found = [re.fullmatch(rf"{name} (.+): (\d+) cases, 0 different", line) for line in lines]
        cases = {match[1]: int(match[2]) for match in found if match}
        assert len(cases) == FUNCTIONS, output
        # The format that a matrix unit alone multiplies.
        empty = set() if name == "amx_int8" else {"masked"}
        assert {function for function, count in cases.items() if not count} == empty, output


# ---- 64-bit Arm -----------------------------------------------------------------------------------------------------


def arm_sources() -> list[Path]:
    """Return all of the engine but Python's view of it and the kernels of other CPUs."""
    foreign = {f"kernels_{isa}" for isa in X86_FLAGS}
    return [p for p in sorted(SOURCES.glob("*.cpp")) if p.stem not in foreign and not p.stem.startswith("binding")]


def compile_for_arm(source: Path, folder: Path) -> Path:
    cpu = ARM_CPU_OF_NEON if source.stem == "kernels_neon" else ARM_CPU
    return compile_with([*ARM, cpu], source, folder)


@pytest.fixture(scope="module")
def arm_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arm")
    objects = [compile_for_arm(source, folder) for source in [*PARTS, SOURCES / "kernels_neon.cpp", CROSS / "bare.cpp"]]
    # What throws would need the C++ library, but nothing here does: such a call goes to address 0 and ends the run.
    linker = [*ZIG, "ld.lld", "-static", "--gc-sections", "--unresolved-symbols=ignore-all"]
    return link(linker, objects, folder / "compare")


@pytest.mark.parametrize("source", arm_sources(), ids=lambda source: source.stem)
def test_the_engine_compiles_for_arm_without_a_warning(source: Path, tmp_path: Path) -> None:
    assert compile_for_arm(source, tmp_path).read_bytes()[:5] == b"\x7fELF\x02"


def test_neon_kernels_are_exact_on_an_emulated_cpu(arm_program: Path) -> None:
    status, output = aarch64.run(arm_program)
    check(output, "neon")
    assert status == 0


def test_neon_kernels_are_exact_under_qemu(arm_program: Path) -> None:
    qemu = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if qemu is None:
        pytest.skip("there is no qemu-aarch64 on PATH (Debian: qemu-user-static); unicorn has run the same program")
    check(run([qemu, "-cpu", "max", str(arm_program)]), "neon")


# ---- SIMDe ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def native_parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("native")
    return [compile_with(COMPILER, source, folder) for source in PARTS]


def with_simde(isa: str) -> list[str]:
    """Flags for kernels_<isa>.cpp on a CPU with AVX2 and FMA alone."""
    definition, stand_in = ("SPARSELANE_NEON", "simde_arm") if isa == "neon" else ("SPARSELANE_AVX2", "simde_x86")
    include = [f"-I{CROSS / stand_in}", "-isystem", simde_py.get_include()]
    return [*AVX2, f"-D{definition}", *include, "-Wno-psabi"]  # no 64-byte vector leaves the file


@needs_avx2
@pytest.mark.parametrize("isa", ["neon", "avx_vnni", "avx512_vnni", "amx_int8"])
def test_kernels_are_exact_through_simde(isa: str, native_parts: list[Path], tmp_path: Path) -> None:
    kernels = compile_with([*COMPILER, *with_simde(isa)], SOURCES / f"kernels_{isa}.cpp", tmp_path)
    check(run([str(link(COMPILER, [*native_parts, kernels], tmp_path / "compare"))]), isa)


# ---- Sanitizers -----------------------------------------------------------------------------------------------------


def test_kernels_of_this_cpu_are_clean_under_sanitizers(tmp_path: Path) -> None:
    command = [*COMPILER, "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    empty = tmp_path / "empty.cpp"
    empty.write_text("int main() {}\n")
    if subprocess.run([*command, str(empty), "-o", str(tmp_path / "empty")], capture_output=True).returncode != 0:
        pytest.skip("the compiler has no sanitizers")
    names = [isa for isa in X86_FLAGS if isa in supported_isas()]
    objects = [compile_with(command, source, tmp_path, "-O1") for source in PARTS]
    for isa in names:
        command_of_isa = [*command, *X86_FLAGS[isa], "-DSPARSELANE_AVX2"]
        objects.append(compile_with(command_of_isa, SOURCES / f"kernels_{isa}.cpp", tmp_path, "-O1"))
    if names:  # SIMDe itself is not for UndefinedBehaviorSanitizer
        neon = [*COMPILER, "-g", "-fsanitize=address", *with_simde("neon")]
        objects.append(compile_with(neon, SOURCES / "kernels_neon.cpp", tmp_path, "-O1"))
        names.append("neon")
    program = link(command, objects, tmp_path / "compare")
    check(run(["env", "ASAN_OPTIONS=detect_leaks=0", str(program)]), *names)
