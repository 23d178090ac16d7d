"""The image as it was built: `image/build.sh`, then these tests. Skipped for a machine that no image was built for."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.image import part_of
from tests.deploy.test_dockerfile import ROOT, stages
from tests.engine.test_cross import X86_FLAGS
from tests.service.test_server import Process, running

IMAGES = ROOT / "build" / "image"
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
BUDGET_BYTES = 250e6
RUN = ROOT / "image" / "run.sh"
QUESTION = {
    "question": "When was the mill built?",
    "context": "The old mill stands on the river Aller near Celle. It was built in 1735.",
}


@pytest.fixture(scope="module", params=MACHINES)
def arch(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def rootfs(arch: str) -> Path:
    found = IMAGES / arch / "rootfs"
    if not found.is_dir():
        pytest.skip(f"there is no {found.relative_to(ROOT)}: ARCH={arch} image/build.sh")
    if os.getuid() != 0:
        pytest.skip("image/run.sh needs root")
    return found


@pytest.fixture(scope="module")
def server(rootfs: Path) -> Iterator[Process]:
    """The image's own server with its own models; the wait of an emulated one is for its /readyz."""
    (models,) = rootfs.glob("opt/sparselane/lib/python3.*/site-packages/service/models")
    program = [str(RUN), str(rootfs), "sparselane", "serve", "--host", "127.0.0.1", "--threads", "1"]
    waits = {"SPARSELANE_REQUEST_TIMEOUT_MS": "600000"}
    with running(Path("/") / models.relative_to(rootfs), program=program, **waits) as process:
        yield process


def inside(rootfs: Path, *command: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {"PATH": os.environ["PATH"], **variables}
    return subprocess.run([RUN, rootfs, *command], capture_output=True, text=True, timeout=300, env=environment)


def test_it_is_within_its_budget(rootfs: Path) -> None:
    sizes = [path.lstat().st_size for path in rootfs.rglob("*") if path.is_file() and not path.is_symlink()]
    assert sum(sizes) < BUDGET_BYTES


def test_every_program_and_library_is_of_its_machine(rootfs: Path, arch: str) -> None:
    """The fields of an ELF header that say so: 64 bits, little endian, e_machine."""
    machine = {"amd64": 62, "arm64": 183}[arch]
    found = {}
    for path in rootfs.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                head = file.read(20)
            if head.startswith(b"\x7fELF"):
                found[path] = (head[4], head[5], int.from_bytes(head[18:20], "little"))
    assert any(path.name.startswith("_engine.") for path in found)
    assert {path: fields for path, fields in found.items() if fields != (2, 1, machine)} == {}


def test_it_holds_no_shell_no_package_manager_no_compiler_and_no_trainer(rootfs: Path) -> None:
    programs = {path.name for folder in ("usr/bin", "usr/sbin") for path in (rootfs / folder).iterdir()}
    programs |= {path.name for path in (rootfs / "opt/sparselane/bin").iterdir()}
    assert "sparselane" in programs
    assert not programs & {"sh", "bash", "dash", "busybox", "apt", "apt-get", "dpkg", "pip", "pip3", "gcc", "g++", "cc"}
    packages = {path.name for path in rootfs.glob("opt/sparselane/lib/python3.*/site-packages/*")}
    assert {"engine", "service"} <= packages
    assert not packages & {"compression", "torch", "transformers", "pip", "setuptools", "nanobind"}


def test_scanners_find_every_package(rootfs: Path) -> None:
    """dpkg's list and the wheels' dist-info: what makes lists of contents (SBOM) of images reads these."""
    status = (rootfs / "var/lib/dpkg/status").read_text()
    debian = set(re.findall(r"^Package: (\S+)", status, re.MULTILINE))
    assert {"base-files", "libc6"} <= debian
    assert len(re.findall(r"^Version: ", status, re.MULTILINE)) == len(debian)
    locked = re.findall(r"^([a-z0-9-]+)==(\S+) ", (ROOT / "image" / "requirements.lock").read_text(), re.MULTILINE)
    found = set()
    for folder in rootfs.glob("opt/sparselane/lib/python3.*/site-packages/*.dist-info"):
        name, _, version = folder.name.removesuffix(".dist-info").partition("-")
        found.add((name.lower().replace("_", "-"), version))
    assert found == {*locked, ("sparselane", "0.1.0")}


def test_models_are_those_of_the_repository(rootfs: Path) -> None:
    (models,) = rootfs.glob("opt/sparselane/lib/python3.*/site-packages/service/models")
    for path in (ROOT / "service" / "models").rglob("*"):
        if path.is_file():
            assert (models / path.relative_to(ROOT / "service" / "models")).read_bytes() == path.read_bytes()
            assert part_of(models.relative_to(rootfs) / path.name) == "models"


def test_it_is_ready_with_every_model_proven(server: Process) -> None:
    names = sorted(path.name for path in (ROOT / "service" / "models").iterdir() if path.is_dir())
    assert server.probe("/readyz")[0] == 200
    proven = {
        name: int(count)
        for line in server.lines
        for name, count in re.findall(r"model (\w+): .* (\d+) golden examples right", line)
    }
    goldens = {
        name: len(json.loads((ROOT / "service" / "models" / name / "manifest.json").read_text())["golden"])
        for name in names
    }
    assert proven == goldens
    assert all(goldens.values())


def test_the_kernels_are_those_of_its_machine(server: Process, arch: str) -> None:
    status, listed = server.ask("GET", "/v1/models")
    assert status == 200
    used = {model["isa"] for model in listed["models"]}
    assert used
    assert used <= ({"neon"} if arch == "arm64" else set(X86_FLAGS))


def test_the_readmes_question_is_answered(server: Process) -> None:
    status, answer = server.ask("POST", "/v1/question-answering", {"inputs": QUESTION})
    assert (status, answer["results"][0][0]["answer"]) == (200, "1735")


def test_the_healthcheck_finds_it_alive(server: Process, rootfs: Path) -> None:
    (check,) = stages((ROOT / "Dockerfile").read_text())[-1].values("HEALTHCHECK")
    command = json.loads(check.partition("CMD ")[2])
    done = inside(rootfs, *command, SPARSELANE_PROBE_PORT=str(server.probe_port))
    assert (done.returncode, done.stderr) == (0, "")
    assert inside(rootfs, *command, SPARSELANE_PROBE_PORT="1").returncode != 0


def test_it_may_write_nothing_and_is_nobody(rootfs: Path) -> None:
    code = "import os; print(os.getuid(), os.getgid(), os.getgroups()); open('/tmp/x', 'w')"
    done = inside(rootfs, "python", "-c", code)
    assert done.stdout == "10001 10001 []\n"
    assert "Read-only file system: '/tmp/x'" in done.stderr


def test_its_byte_code_is_there(rootfs: Path) -> None:
    """Nothing is compiled at a start: with a read-only root file system that would be done at each."""
    code = """
import os, sys
import service.server
specs = [module.__spec__ for module in sys.modules.values() if getattr(module, "__spec__", None)]
print(len(specs) > 100, [spec.name for spec in specs if spec.cached and not os.path.exists(spec.cached)])
"""
    done = inside(rootfs, "python", "-c", code)
    assert (done.returncode, done.stdout) == (0, "True []\n"), done.stderr


def test_it_stops_when_it_is_told_to(server: Process) -> None:
    """The last one: as `docker stop` does, and with 0."""
    assert server.stop() == 0
