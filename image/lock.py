"""Which packages does the image install? `python -m image.lock` (or `make lock`) writes the two lists, with hashes.

Versions are those of constraints.txt. Hashes are the index's, of one wheel for each supported Python on amd64 and on
arm64, so that the same lists do for every base image; pip installs nothing else from them (--require-hashes).
"""

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

ROOT = Path(__file__).parents[1]
SERVICE, BUILD = ROOT / "image" / "requirements.lock", ROOT / "image" / "build.lock"
PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")
# The C library of Debian 12, the base image's: wheels for it or an older one will do.
GLIBC_MINOR = 36
# What the Makefile installs before it builds the engine without an isolated build.
BUILD_TOOLS = ("scikit-build-core", "nanobind", "cmake", "ninja")
# The image can send spans (SPARSELANE_OTLP_ENDPOINT); what that weighs is in bench/record/2026-11-21_image.
EXTRAS = ("otel",)
# Asked for by a package, and used by none of its parts that the service calls.
LEFT_OUT = {"huggingface-hub": "only tokenizers' Tokenizer.from_pretrained, which downloads"}


@dataclass(frozen=True)
class Wheel:
    """One file of the index."""

    package: str
    version: str
    file: str
    sha256: str


def main() -> None:
    """Write both lists. Raises CalledProcessError, with pip's words on stderr, where something has no wheel."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    write(SERVICE, [*project["dependencies"], *(need for extra in EXTRAS for need in extras[extra])])
    write(BUILD, BUILD_TOOLS)


def write(path: Path, roots: Iterable[str]) -> None:
    """Write the list of what `roots` need, on every Python and machine."""
    roots = list(roots)
    targets = ((python, machine) for python in PYTHONS for machine in MACHINES)
    wheels = {wheel for python, machine in targets for wheel in needed(roots, python, machine)}
    lines = [
        "# Written by `make lock` (image/lock.py) from pyproject.toml and constraints.txt; not edited.",
        f"# For Python {', '.join(PYTHONS)} on {' and '.join(MACHINES)}.",
        *(f"# Without {name}: {why}." for name, why in LEFT_OUT.items() if path == SERVICE),
    ]
    for package in sorted({wheel.package for wheel in wheels}):
        files = sorted((wheel for wheel in wheels if wheel.package == package), key=lambda wheel: wheel.file)
        lines += [f"# {wheel.file}" for wheel in files]
        hashes = [f"--hash=sha256:{wheel.sha256}" for wheel in files]
        lines.append(" \\\n    ".join([f"{package}=={files[0].version}", *hashes]))
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text("\n".join(lines) + "\n", encoding="utf-8")
    unfinished.rename(path)


def needed(roots: list[str], python: str, machine: str) -> Iterator[Wheel]:
    """Yield the wheels of `roots` and of all that they need, but for LEFT_OUT and what only that needs."""
    found = {canonicalize_name(entry["metadata"]["name"]): entry for entry in resolved(roots, python, machine)}
    environment = {key: str(value) for key, value in default_environment().items()}
    environment |= {"python_version": python, "python_full_version": f"{python}.0", "platform_machine": machine}
    seen: set[tuple[NormalizedName, str]] = set()
    waiting = [Requirement(root) for root in roots]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        for extra in {"", *wanted.extras} - {extra for package, extra in seen if package == name}:
            seen.add((name, extra))
            needs = map(Requirement, found[name]["metadata"].get("requires_dist", []))
            waiting += [
                need
                for need in needs
                if canonicalize_name(need.name) not in LEFT_OUT
                and (need.marker is None or need.marker.evaluate({**environment, "extra": extra}))
            ]
    for name in {name for name, _ in seen}:
        download, metadata = found[name]["download_info"], found[name]["metadata"]
        file = download["url"].rpartition("/")[2].partition("#")[0]
        yield Wheel(name, metadata["version"], file, download["archive_info"]["hashes"]["sha256"])


def resolved(roots: list[str], python: str, machine: str) -> list[dict[str, Any]]:
    """Ask pip what it would install there; nothing is installed."""
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(5, GLIBC_MINOR + 1)] + [f"manylinux2014_{machine}"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    # An older pip wants a folder, in which it then puts nothing.
    command += ["--target", "unused", "--only-binary", ":all:", "--python-version", python, "--implementation", "cp"]
    command += [part for tag in tags for part in ("--platform", tag)]
    command += ["--constraint", str(ROOT / "constraints.txt"), *roots]
    report: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return list(report["install"])


if __name__ == "__main__":
    main()
