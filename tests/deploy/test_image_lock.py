"""The image's locked packages: versions of constraints.txt, hashes for every Python and machine, nothing missing."""

import re
import tomllib
from collections.abc import Iterable
from importlib.metadata import requires
from itertools import product
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

from image.lock import BUILD, BUILD_TOOLS, EXTRAS, GLIBC_MINOR, LEFT_OUT, MACHINES, PYTHONS, SERVICE

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def locked(path: Path) -> dict[str, tuple[str, list[str], list[str]]]:
    """Return version, wheels' file names and hashes of each package."""
    found = {}
    files: list[str] = []
    for line in path.read_text().replace(" \\\n", " ").splitlines():
        if line.startswith("# ") and line.endswith(".whl"):
            files.append(line[2:])
        elif not line.startswith("#"):
            requirement, *hashes = line.split()
            name, version = requirement.split("==")
            found[name] = version, files, hashes
            files = []
    return found


@pytest.fixture(params=[SERVICE, BUILD], ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    assert isinstance(request.param, Path)
    return request.param


def test_versions_are_those_that_the_tests_run_with(path: Path) -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line[:60])
    known = {canonicalize_name(name): version for name, version in pins.items() if not name.startswith("#")}
    for name, (version, _, _) in locked(path).items():
        assert known.get(name) == version, f"{name}: run `make lock`"


def test_every_package_has_a_wheel_for_every_python_on_both_machines(path: Path) -> None:
    for name, (version, files, hashes) in locked(path).items():
        assert len(files) == len(set(hashes)) == len(hashes) > 0
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one) for one in hashes)
        tags = [parsed(file, name, version) for file in files]
        for python, machine in product(PYTHONS, MACHINES):
            fitting = fits(python, machine)
            assert any(fitting & wheel for wheel in tags), f"{name} has no wheel for Python {python} on {machine}"


def parsed(file: str, name: str, version: str) -> frozenset[Tag]:
    package, found, _, tags = parse_wheel_filename(file)
    assert (package, str(found)) == (name, version)
    return tags


def fits(python: str, machine: str) -> set[Tag]:
    """Tags of wheels that an image like ours takes: that Python, glibc of Debian 12 or older."""
    version = tuple(map(int, python.split(".")))
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(5, GLIBC_MINOR + 1)]
    platforms += [f"manylinux{year}_{machine}" for year in (1, 2010, 2014)]
    return {*cpython_tags(version, platforms=platforms), *compatible_tags(version, platforms=platforms)}


def test_nothing_that_is_needed_is_missing() -> None:
    """The installed packages' own words, on the Python that runs the tests."""
    wanted = [*PROJECT["dependencies"], *(need for extra in EXTRAS for need in PROJECT["optional-dependencies"][extra])]
    check_closed(wanted, set(locked(SERVICE)), set(LEFT_OUT))


def test_no_build_tool_is_missing() -> None:
    check_closed(BUILD_TOOLS, set(locked(BUILD)), set())


def check_closed(wanted: Iterable[str], found: set[str], left_out: set[str]) -> None:
    waiting = [Requirement(one) for one in wanted]
    seen: set[tuple[str, str]] = set()
    while waiting:
        need = waiting.pop()
        name = canonicalize_name(need.name)
        for extra in {"", *need.extras} - {one for package, one in seen if package == name}:
            seen.add((name, extra))
            assert name in found, f"{name} is needed: run `make lock`"
            needs = (Requirement(one) for one in requires(name) or [])
            waiting += [
                one
                for one in needs
                if canonicalize_name(one.name) not in left_out
                and (one.marker is None or one.marker.evaluate({"extra": extra}))
            ]
    # What another Python alone needs would be here, too; nothing is.
    assert {name for name, _ in seen} == found


def test_heavy_packages_that_nothing_here_calls_are_not_in_the_image() -> None:
    heavy = {"torch", "transformers", "scipy", "pandas", "matplotlib", "huggingface-hub", "hf-xet", "pip", "setuptools"}
    heavy |= {"watchfiles", "websockets", "pyyaml", "python-dotenv"}
    assert not heavy & set(locked(SERVICE))
