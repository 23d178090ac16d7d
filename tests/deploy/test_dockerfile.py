"""The Dockerfile, linted and read, not built (test_built_image.py does): its stages, and what the last one holds."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from image.lock import PYTHONS
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
    options: list[str]
    steps: list[tuple[str, str]] = field(default_factory=list)

    def values(self, instruction: str) -> list[str]:
        return [value for name, value in self.steps if name == instruction]


def stages(text: str) -> list[Stage]:
    found: list[Stage] = []
    joined = re.sub(r"\\\n\s*", "", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    for line in filter(None, map(str.strip, joined.splitlines())):
        instruction, _, value = line.partition(" ")
        if instruction == "FROM":
            where, _, name = value.partition(" AS ")
            *options, image = where.split()
            found.append(Stage(image, name, options))
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


# The Python of Debian's releases, packages.debian.org/python3-minimal.
DEBIAN_PYTHON = {"bookworm": "3.11", "trixie": "3.13"}


def test_two_stages_and_the_second_begins_with_nothing(builder: Stage, runtime: Stage) -> None:
    assert [stage.name for stage in stages((ROOT / "Dockerfile").read_text())] == ["builder", "runtime"]
    assert (builder.image, runtime.image) == ("${DEBIAN_IMAGE}", "scratch")


def test_nothing_is_emulated_but_a_last_look(builder: Stage, runtime: Stage) -> None:
    """The builder is of the machine that builds; only image/root.sh runs what was made, where it can."""
    assert builder.options == ["--platform=$BUILDPLATFORM"]
    assert runtime.options == ["--platform=$TARGETPLATFORM"]
    assert builder.values("ARG") == ["TARGETARCH"]
    for part in ("pip --python /opt/sparselane/bin/python install", "pip wheel"):
        (first, *_) = [run for run in builder.values("RUN") if part in run]
        assert first.index(". image/target.sh") < first.index(part)


def test_wheels_are_locked_for_the_default_python() -> None:
    (release,) = re.findall(r"^ARG DEBIAN_IMAGE=debian:(\w+)-slim", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert DEBIAN_PYTHON[release] in PYTHONS


def test_runtime_holds_no_compiler_and_no_trainer(runtime: Stage) -> None:
    text = "\n".join(value for name, value in runtime.steps if name != "LABEL")
    assert not [word for word in BUILD_WORDS if word in text]
    folders = ["/rootfs /", "/opt/sparselane /opt/sparselane"]
    assert runtime.values("COPY") == [f"--from=builder {folder}" for folder in folders]
    assert not runtime.values("ADD")


def test_nothing_runs_in_the_runtime_stage(runtime: Stage) -> None:
    """There is no shell that could."""
    assert "RUN" not in {name for name, _ in runtime.steps}


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_hadolint_would_have_something_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    bad = "FROM python:latest\nRUN pip install numpy\n"
    done = subprocess.run([hadolint, "-"], input=bad, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert {"DL3007", "DL3013"} <= set(re.findall(r"DL\d+", done.stdout))


@pytest.mark.parametrize("name", ["build.sh", "root.sh", "run.sh", "target.sh"])
def test_the_scripts_are_programs_of_a_plain_shell(name: str) -> None:
    script = ROOT / "image" / name
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/bin/sh\n")
    done = subprocess.run(["/bin/sh", "-n", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_builder_installs_what_is_locked_and_nothing_else(builder: Stage) -> None:
    installs = [
        part for run in builder.values("RUN") for part in run.split("&&") if re.search(r"\bpip .*install", part)
    ]
    locked = [install for install in installs if "--no-index" not in install]
    assert len(installs) == 3
    assert len(locked) == 2
    for install in locked:
        assert "--require-hashes" in install and "--no-deps" in install and "--only-binary :all:" in install
        (name,) = re.findall(r"--requirement (\S+)", install)
        assert (ROOT / name).is_file()
        assert "[" not in install, f"an extra in the image: {install}"


def test_nothing_of_this_machine_is_in_the_build(builder: Stage, runtime: Stage) -> None:
    """Every path that a COPY names is in the context, so the build reads files of the repository alone."""
    named = [part for value in builder.values("COPY") for part in value.split()[:-1]]
    assert named and all((ROOT / part).exists() for part in named)
    assert all("--from=builder" in value for value in runtime.values("COPY"))


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


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_healthcheck_tells_alive_from_stuck(status: int, healthy: bool, runtime: Stage) -> None:
    (check,) = runtime.values("HEALTHCHECK")
    python, *arguments = json.loads(check.partition("CMD ")[2])
    assert python == "python", "the image has no other program that could ask"

    class Probe(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Probe) as server:
        server.timeout = 60
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        port = {"SPARSELANE_PROBE_PORT": str(server.server_address[1])}
        done = subprocess.run(
            [sys.executable, *arguments], env=os.environ | port, stderr=subprocess.DEVNULL, timeout=60
        )
        thread.join()
    assert (done.returncode == 0) is healthy


def test_build_context_has_what_the_build_reads_and_no_more(builder: Stage) -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*", "the context must be an allow list"
    allowed = {line[1:] for line in lines if line.startswith("!")}
    copied = {part for value in builder.values("COPY") for part in value.split()[:-1]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {project["readme"], *project["license-files"]} <= copied, "the wheel names them"
    assert allowed == {"image/*.lock" if name.endswith(".lock") else name for name in copied}


def test_the_wheel_of_the_image_is_that_of_the_project_without_the_trainer(builder: Stage) -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["scikit-build"]["wheel"]["packages"]
    (given,) = [found for run in builder.values("RUN") for found in re.findall(r"'wheel\.packages=([^']*)'", run)]
    assert set(given.split(";")) == set(packages) - {"compression"}


def told(arch: str, program: str = "env") -> "subprocess.CompletedProcess[str]":
    """What a program hears of the machine that the image is for."""
    command = ["/bin/sh", "-euc", f". image/target.sh; {program}"]
    environment = {"PATH": os.environ["PATH"], "TARGETARCH": arch}
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60)


needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-architecture") is None, reason="needs Debian's dpkg-dev")


@needs_dpkg
@pytest.mark.parametrize(("arch", "machine"), [("amd64", "x86_64"), ("arm64", "aarch64")])
def test_the_compiler_and_cmake_are_told_of_the_machine(arch: str, machine: str) -> None:
    seen = dict(line.split("=", 1) for line in told(arch).stdout.splitlines())
    assert (seen["CXX"], seen["STRIP"]) == (f"{machine}-linux-gnu-g++", f"{machine}-linux-gnu-strip")
    assert seen["CMAKE_ARGS"] == f"-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR={machine}"
    assert seen["_PYTHON_SYSCONFIGDATA_NAME"] == f"_sysconfigdata__{machine}-linux-gnu"


@needs_dpkg
@pytest.mark.parametrize(("arch", "machine"), [("amd64", "x86_64"), ("arm64", "aarch64")])
def test_pip_is_told_of_the_machine(arch: str, machine: str) -> None:
    """`pip debug` lists the tags of wheels that it would take. Here without what only Debian's builder has."""
    pip = f"unset _PYTHON_SYSCONFIGDATA_NAME; exec '{sys.executable}' -m pip debug --verbose"
    tags = set(re.findall(r"^  (cp\S+-cp\S+-\S+)$", told(arch, pip).stdout, re.MULTILINE))
    assert f"cp{sys.version_info.major}{sys.version_info.minor}" in {tag.partition("-")[0] for tag in tags}
    assert {tag.endswith(machine) for tag in tags if not tag.endswith("any")} == {True}


@needs_dpkg
def test_a_machine_that_debian_does_not_know_is_an_error() -> None:
    done = told("z80")
    assert done.returncode != 0
    assert "z80" in done.stderr
