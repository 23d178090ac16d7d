"""The Python environments of the peers, under .venv-bench/: `python -m bench.environments` makes what is missing.

The peers are large and none of them is part of `make setup`. An environment that cannot be made is reported and left
out; its engines then stand in the record as absent, with the reason.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".venv-bench"
PINS = Path(__file__).parent / "pins"


@dataclass(frozen=True)
class Environment:
    """A virtual environment and the newest Python it can have."""

    name: str
    newest_python: tuple[int, int]

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return FOLDER / self.name

    @property
    def python(self) -> Path:
        """Its interpreter, there or not."""
        return self.folder / "bin" / "python"

    @property
    def pins(self) -> Path:
        """The exact versions of all its packages."""
        return PINS / f"{self.name}.txt"

    @property
    def ready(self) -> bool:
        """Whether its packages were installed from the pins as they are now."""
        stamp = self.folder / "installed.txt"
        return self.python.exists() and stamp.exists() and stamp.read_bytes() == self.pins.read_bytes()


ENVIRONMENTS = {
    environment.name: environment for environment in (Environment("peers", (3, 13)), Environment("deepsparse", (3, 11)))
}


def pythons() -> tuple[dict[str, Path], dict[str, str]]:
    """Return the interpreter of each environment that is ready, and for each other the reason why it is not."""
    found, missing = {"main": Path(sys.executable)}, {}
    for name, environment in ENVIRONMENTS.items():
        if environment.ready:
            found[name] = environment.python
        else:
            missing[name] = f"environment .venv-bench/{name} is not installed (python -m bench.environments)"
    return found, missing


def versions(python: Path) -> Mapping[str, str]:
    """Return the packages of an environment; empty where it has no pip."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "list", "--format=freeze"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return dict(line.split("==", 1) for line in done.stdout.splitlines() if "==" in line)


def make(environment: Environment) -> str:
    """Make an environment if it is not ready. Returns an empty string, or why it could not be made."""
    if environment.ready:
        return ""
    python = _interpreter(environment.newest_python)
    if python is None:
        return f"needs a Python from 3.11 to {environment.newest_python[0]}.{environment.newest_python[1]}"
    pip = [str(environment.python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    commands = [] if environment.python.exists() else [[python, "-m", "venv", str(environment.folder)]]
    commands.append([*pip, "install", "--requirement", str(environment.pins)])
    for command in commands:
        done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no reason given"]
            return f"{' '.join(command[1:4])} failed: {errors[-1]}"
    shutil.copyfile(environment.pins, environment.folder / "installed.txt")
    return ""


def _interpreter(newest: tuple[int, int]) -> str | None:
    if sys.version_info[:2] <= newest:
        return sys.executable
    names = [f"python3.{minor}" for minor in range(newest[1], 10, -1)]
    return next((path for name in names if (path := shutil.which(name))), None)


def main() -> None:
    """Make all environments; say what is missing, and do not fail: the bench runs with what there is."""
    FOLDER.mkdir(exist_ok=True)
    for name, environment in ENVIRONMENTS.items():
        if not environment.ready:
            print(f"==> Installing the peers into {os.path.relpath(environment.folder, ROOT)}", file=sys.stderr)
        if reason := make(environment):
            print(f"warning: no environment {name}: {reason}", file=sys.stderr)


if __name__ == "__main__":
    main()
