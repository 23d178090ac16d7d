"""The Makefile: what a newcomer sees first, and what it says when the machine lacks something."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TARGETS = ("help", "setup", "serve", "test", "check", "bench", "models", "lock", "clean")


def make(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run make as from a fresh shell: `make test` itself leaves its flags and variables in the environment."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    clean = {name: value for name, value in inherited.items() if name not in ("PORT", "PYTHON", "VENV", "CXX")}
    command = ["make", "-C", str(ROOT), *arguments]
    return subprocess.run(command, env=clean | variables, capture_output=True, text=True, timeout=60, check=False)


def test_default_target_is_help_and_names_every_target() -> None:
    plain, asked = make("--no-print-directory"), make("--no-print-directory", "help")
    assert plain.stdout == asked.stdout
    assert tuple(re.findall(r"^make (\w+) +\S", asked.stdout, re.MULTILINE)) == TARGETS


@pytest.mark.parametrize("python", ["/nonexistent/python3.12", "/bin/false"])
def test_unfit_python_is_named_with_the_way_out(python: str, tmp_path: Path) -> None:
    result = make("serve", f"VENV={tmp_path / 'venv'}", PYTHON=python)
    assert result.returncode != 0
    assert python in result.stderr
    assert "3.11, 3.12 or 3.13" in result.stderr
    assert "make PYTHON=" in result.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("minor", [10, 14])
def test_python_outside_the_range_is_refused(minor: int, tmp_path: Path) -> None:
    """A stand-in interpreter that reports another version: the check is ours, the interpreter need not exist."""
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\nimport sys\nsys.version_info = (3, {minor}, 0)\nexec(sys.argv[sys.argv.index('-c') + 1])"
    )
    python.chmod(0o755)
    result = make("serve", f"VENV={tmp_path / 'venv'}", PYTHON=str(python))
    assert result.returncode != 0
    assert f"no Python 3.11, 3.12 or 3.13 with venv and ensurepip among: {python}" in result.stderr


def test_missing_compiler_is_named(tmp_path: Path) -> None:
    (tmp_path / ".python").touch()
    result = make("serve", f"VENV={tmp_path}", CXX="/nonexistent/c++")
    assert result.returncode != 0
    assert "no C++ compiler (/nonexistent/c++)" in result.stderr


def test_serve_takes_port_and_installs_no_extras(tmp_path: Path) -> None:
    recipe = make("--dry-run", "serve", f"VENV={tmp_path / 'venv'}", PORT="8123").stdout
    assert "SPARSELANE_PORT=8123" in recipe
    assert "compression" not in recipe
    assert "--constraint constraints.txt" in recipe


def test_second_serve_installs_nothing(tmp_path: Path) -> None:
    for stamp in (".python", ".tools", ".service"):
        (tmp_path / stamp).touch()
    recipe = make("--dry-run", "serve", f"VENV={tmp_path}").stdout
    assert "sparselane serve" in recipe
    assert "pip" not in recipe


@pytest.mark.parametrize("changed", ["pyproject.toml", "constraints.txt", "CMakeLists.txt", "engine/src/binding.cpp"])
def test_changed_source_installs_again(changed: str, tmp_path: Path) -> None:
    for stamp in (".python", ".tools", ".service"):
        (tmp_path / stamp).touch()
    # make's own "pretend this file is new": the tree is not touched.
    recipe = make("--dry-run", f"--what-if={changed}", "serve", f"VENV={tmp_path}").stdout
    assert "--editable ." in recipe


def test_test_runs_the_checks_first(tmp_path: Path) -> None:
    recipe = make("--dry-run", "test", f"VENV={tmp_path / 'venv'}").stdout
    steps = (
        "--editable .",
        "sparselane[dev,compression]",
        "bin/ruff check",
        "bin/ruff format --check",
        "bin/mypy",
        "--requirement tests/pins/transformers4.txt",
        "-m pytest",
    )
    positions = [recipe.index(step) for step in steps]
    assert positions == sorted(positions)


def test_ci_runs_make_test_and_nothing_else() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines[-1] == "exec make test"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
