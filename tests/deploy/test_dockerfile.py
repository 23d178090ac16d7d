"""The Dockerfile, read rather than built: no container engine is needed to see what the runtime stage holds."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from service.settings import load_settings

ROOT = Path(__file__).parents[2]
# Words that would mean a compiler, its headers, a package manager at work, or the trainer in the image that runs.
BUILD_WORDS = (
    "g++",
    "gcc",
    "clang",
    "cmake",
    "ninja",
    "apt-get",
    "pip ",
    "torch",
    "transformers",
    "[compression]",
    "[dev]",
)


@dataclass
class Stage:
    """One FROM with the instructions under it."""

    image: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def values(self, instruction: str) -> list[str]:
        return [value for name, value in self.steps if name == instruction]


def stages(text: str) -> list[Stage]:
    found: list[Stage] = []
    joined = re.sub(r"\\\n\s*", "", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    for line in filter(None, map(str.strip, joined.splitlines())):
        instruction, _, value = line.partition(" ")
        if instruction == "FROM":
            image, _, name = value.partition(" AS ")
            found.append(Stage(image, name))
        elif found:
            found[-1].steps.append((instruction, value.strip()))
        else:
            assert instruction == "ARG", f"{line}: only ARG may stand before the first FROM"
    return found


@pytest.fixture(scope="module")
def builder() -> Stage:
    return stages((ROOT / "Dockerfile").read_text())[0]


@pytest.fixture(scope="module")
def runtime() -> Stage:
    return stages((ROOT / "Dockerfile").read_text())[1]


def test_two_stages_from_the_same_image(builder: Stage, runtime: Stage) -> None:
    assert [stage.name for stage in stages((ROOT / "Dockerfile").read_text())] == ["builder", "runtime"]
    assert builder.image == runtime.image, "the environment is copied: interpreter and C library must be the same"


def test_default_python_is_supported() -> None:
    (version,) = re.findall(r"^ARG PYTHON_IMAGE=python:3\.(\d+)-slim", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert 11 <= int(version) < 14


def test_runtime_holds_no_compiler_and_no_trainer(runtime: Stage) -> None:
    text = "\n".join(value for name, value in runtime.steps if name != "LABEL")
    assert not [word for word in BUILD_WORDS if word in text]
    assert runtime.values("COPY") == ["--from=builder /opt/sparselane /opt/sparselane"]
    assert not runtime.values("ADD")


def test_builder_installs_pinned_and_without_extras(builder: Stage) -> None:
    installs = [
        part for run in builder.values("RUN") for part in run.split("&&") if re.search(r"\bpip .*install", part)
    ]
    assert installs
    for install in installs:
        assert "--constraint constraints.txt" in install or "--no-index" in install, install
        assert "[" not in install, f"an extra in the image: {install}"


def test_dependency_layer_reads_the_project_file(builder: Stage) -> None:
    (script,) = [found for run in builder.values("RUN") for found in re.findall(r'python -c "([^"]+)" >', run)]
    output = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    expected = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert output.splitlines() == expected


def test_runs_as_a_numbered_user_for_good(runtime: Stage) -> None:
    assert runtime.values("USER") == ["10001:10001"]
    after = [name for name, _ in runtime.steps[[name for name, _ in runtime.steps].index("USER") :]]
    assert "RUN" not in after
    assert "runAsUser: 10001" in (ROOT / "k8s" / "base" / "deployment.yaml").read_text()


def test_entrypoint_is_exec_form_so_that_sigterm_reaches_the_server(runtime: Stage) -> None:
    command = json.loads(runtime.values("ENTRYPOINT")[0]) + json.loads(runtime.values("CMD")[0])
    assert command == ["sparselane", "serve"]
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert command[0] in scripts
    assert runtime.values("STOPSIGNAL") == ["SIGTERM"]


def test_environment_is_one_the_server_accepts(runtime: Stage) -> None:
    pairs = dict(pair.split("=", 1) for value in runtime.values("ENV") for pair in value.split())
    settings = load_settings({name: value for name, value in pairs.items() if name.startswith("SPARSELANE_")})
    assert runtime.values("EXPOSE") == [f"{settings.port} {settings.probe_port}"]
    assert settings.host == "0.0.0.0"
    assert pairs["PYTHONDONTWRITEBYTECODE"] == "1"


def test_healthcheck_needs_nothing_but_python(runtime: Stage) -> None:
    (check,) = runtime.values("HEALTHCHECK")
    python, flag, script = json.loads(check.partition("CMD ")[2])
    assert (python, flag) == ("python", "-c")
    ast.parse(script)
    assert "/healthz" in script


def test_build_context_has_what_the_build_reads_and_no_more() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*", "the context must be an allow list"
    allowed = {line[1:] for line in lines if line.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {"pyproject.toml", "constraints.txt", "CMakeLists.txt", project["project"]["readme"]}
    needed |= {*project["project"]["license-files"], *project["tool"]["scikit-build"]["wheel"]["packages"]}
    assert allowed == needed
