"""What the engine chooses by itself: threads from the quota, kernels from the CPU; and how to choose otherwise."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine
from engine import _engine
from engine.artifact import ChecksumError
from tests.random_artifact import write_random_artifact


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    return tmp_path


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_without_a_quota_it_is_the_affinity_mask(root: Path) -> None:
    assert engine.threads_from_quota(root) == 16


@pytest.mark.parametrize(
    ("text", "threads"), [("max 100000", 16), ("400000 100000", 4), ("250000 100000", 2), ("50000 100000", 1)]
)
def test_cgroup_v2(root: Path, text: str, threads: int) -> None:
    write(root, "proc/self/cgroup", "0::/\n")
    write(root, "sys/fs/cgroup/cpu.max", text + "\n")
    assert engine.threads_from_quota(root) == threads


def test_cgroup_v2_takes_the_smallest_quota_on_the_way_up(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/kubepods/pod1/box\n")
    write(root, "sys/fs/cgroup/kubepods/pod1/box/cpu.max", "max 100000\n")
    write(root, "sys/fs/cgroup/kubepods/pod1/cpu.max", "300000 100000\n")
    write(root, "sys/fs/cgroup/kubepods/cpu.max", "1000000 100000\n")
    assert engine.threads_from_quota(root) == 3


@pytest.mark.parametrize(("quota", "threads"), [(-1, 16), (300000, 3), (10000, 1)])
@pytest.mark.parametrize("where", ["cpu", "cpu,cpuacct", "cpu/docker/box"])
def test_cgroup_v1(root: Path, quota: int, threads: int, where: str) -> None:
    write(root, "proc/self/cgroup", "5:memory:/docker/box\n4:cpu:/docker/box\n3:cpuset:/\n")
    write(root, f"sys/fs/cgroup/{where}/cpu.cfs_quota_us", f"{quota}\n")
    write(root, f"sys/fs/cgroup/{where}/cpu.cfs_period_us", "100000\n")
    assert engine.threads_from_quota(root) == threads


@pytest.mark.parametrize("text", ["", "nonsense", "1 2 3", "100000 0"])
def test_an_unreadable_quota_is_no_quota(root: Path, text: str) -> None:
    write(root, "proc/self/cgroup", f"{text}\n0::/\n")
    write(root, "sys/fs/cgroup/cpu.max", text)
    assert engine.threads_from_quota(root) == 16


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts") / "small"
    write_random_artifact(folder, layers=1, hidden=8, heads=2, ffn=8)
    return folder


def test_the_fastest_kernels_and_all_threads_are_the_default(artifact: Path) -> None:
    model = engine.load(artifact)
    assert (model.isa, model.threads) == (engine.supported_isas()[-1], engine.threads_from_quota())


def test_the_environment_chooses_the_kernels(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSELANE_ISA", "reference")
    assert engine.load(artifact).isa == "reference"
    assert engine.load(artifact, isa=engine.supported_isas()[-1]).isa == engine.supported_isas()[-1]


def test_kernels_that_cannot_run_are_an_error(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="isa is 'neon9', but this CPU and this build can run only: reference"):
        engine.load(artifact, isa="neon9")
    monkeypatch.setenv("SPARSELANE_ISA", "neon9")
    with pytest.raises(ValueError, match="SPARSELANE_ISA is 'neon9'"):
        engine.load(artifact)


def test_only_what_a_matrix_unit_costs_is_measured() -> None:
    for isa in engine.supported_isas():
        first, second = _engine.measure_costs(isa, 1), _engine.measure_costs(isa, 1)
        fixed = set(first) - {"masked"}
        assert fixed <= set(_engine.formats_of(isa))
        assert {name: first[name] for name in fixed} == {name: second[name] for name in fixed}
        assert ("masked" in first) == (isa == "amx_int8")
        # A step of 32 rows x 64 columns, zeros too, is neither as fast as 4 products nor slower than all of them alone.
        if "masked" in first:
            assert first["survivors"] < first["masked"] < 32 * 64 * first["survivors"]


def test_kernels_by_name_choose_formats_by_their_table_and_by_default_by_measurement(tmp_path: Path) -> None:
    write_random_artifact(tmp_path / "a", layers=2, hidden=256, heads=4, ffn=512, vocabulary=50, sparsity=0.5)
    ids, lengths = np.arange(40, dtype=np.int32), np.array([40], np.int32)
    named = [engine.load(tmp_path / "a", threads=1, isa=isa) for isa in engine.supported_isas()]
    for model in named:
        assert engine.load(tmp_path / "a", threads=1, isa=model.isa).formats == model.formats
    default = engine.load(tmp_path / "a", threads=1)
    assert set(default.formats) <= set(_engine.formats_of(default.isa))
    if default.isa != "amx_int8":
        assert default.formats == named[-1].formats
    bits = {model.forward(ids, lengths).tobytes() for model in [default, *named]}
    assert len(bits) == 1, "whatever was measured, the answer is the same"


def test_the_manifest_chooses_the_attention_and_the_caller_overrules_it(artifact: Path, tmp_path: Path) -> None:
    assert engine.read_manifest(artifact).attention == "int8"
    ids, lengths = np.arange(6, dtype=np.int32), np.array([6], np.int32)
    rounded, whole = (engine.load(artifact, attention=a).forward(ids, lengths) for a in ("int8", "float32"))
    assert rounded.tobytes() != whole.tobytes()
    assert engine.load(artifact).forward(ids, lengths).tobytes() == rounded.tobytes()
    write_random_artifact(tmp_path / "old", layers=1, hidden=8, heads=2, ffn=8)
    manifest = json.loads((tmp_path / "old" / "manifest.json").read_text())
    del manifest["quantization"]["attention"]  # as before there was a choice
    (tmp_path / "old" / "manifest.json").write_text(json.dumps(manifest))
    assert engine.load(tmp_path / "old").forward(ids, lengths).tobytes() == whole.tobytes()
    with pytest.raises(ValueError, match="attention is 'int4', must be float32 or int8"):
        engine.load(artifact, attention="int4")


def test_memory_can_be_given_back_at_any_time() -> None:
    assert engine.release_memory() is None  # type: ignore[func-returns-value]


FORK = """
import os, sys, engine, numpy
model = engine.load(sys.argv[1])
one = numpy.ones(1, numpy.int32)
model.forward(one, one)
if os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
try:
    model.forward(one, one)
except RuntimeError as error:
    os._exit(0 if "load it again in this process" in str(error) else 2)
os._exit(3)
"""


# The old model dies after the new one has threads, whose handles may be the old one's again.
FORK_AND_LOAD = """
import os, sys, engine, numpy
model = engine.load(sys.argv[1], threads=int(sys.argv[2]))
one = numpy.ones(1, numpy.int32)
expected = model.forward(one, one).tobytes()
if os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
model = engine.load(sys.argv[1], threads=int(sys.argv[2]))
assert model.forward(one, one).tobytes() == expected
model = engine.load(sys.argv[1], threads=int(sys.argv[2]))
sys.exit(0 if model.forward(one, one).tobytes() == expected else 3)
"""

# The lock of the pool is held as the process forks.
FORK_WHILE_BUSY = """
import os, sys, threading, engine, numpy
model = engine.load(sys.argv[1])
many, one = numpy.ones(64, numpy.int32), numpy.ones(1, numpy.int32)
lengths = numpy.full(4, 16, numpy.int32)
def work():
    while not stop:
        model.forward(many, lengths)
stop = False
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
codes = []
for _ in range(8):
    if child := os.fork():
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        continue
    try:
        model.forward(one, one)
    except RuntimeError as error:
        os._exit(0 if "load it again in this process" in str(error) else 2)
    os._exit(3)
stop = True
for thread in threads:
    thread.join()
sys.exit(max(codes))
"""

FEW_THREADS = """
import resource, sys, engine
engine.threads_from_quota = lambda: 64
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 80 * 2**20, resource.RLIM_INFINITY))
try:
    engine.load(sys.argv[1])
except RuntimeError as error:
    assert "cannot start thread" in str(error) and "of 64" in str(error), error
    sys.exit(0)
sys.exit(3)
"""

# A buffer that is refilled while a call reads it: wrong answers are the caller's, the memory is ours.
RACE = """
import sys, threading, time, engine, numpy
model = engine.load(sys.argv[1])
ids, lengths = numpy.ones(64, numpy.int32), numpy.full(4, 16, numpy.int32)
def spoil():
    while not stop:
        ids[:] = -(2**31)
        ids[:] = 2**31 - 1
        lengths[:] = 2**31 - 1
        lengths[:] = 16
        ids[:] = 1
stop = False
thread = threading.Thread(target=spoil)
thread.start()
end, answers = time.monotonic() + 2, 0
while time.monotonic() < end or not answers:
    try:
        model.forward(ids, lengths)
        answers += 1
    except ValueError:
        pass
stop = True
thread.join()
"""


def run_alone(program: str, artifact: Path, *arguments: object) -> None:
    command = [sys.executable, "-c", program, str(artifact), *map(str, arguments)]
    done = subprocess.run(command, check=False, timeout=120, cwd=artifact, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("threads", [1, 2])
def test_a_child_may_load_what_its_parent_had_loaded(artifact: Path, threads: int) -> None:
    run_alone(FORK_AND_LOAD, artifact, min(threads, engine.threads_from_quota()))


def test_a_child_of_a_busy_parent_does_not_wait_for_it(artifact: Path) -> None:
    run_alone(FORK_WHILE_BUSY, artifact)


def test_threads_that_cannot_be_started_are_an_error_that_says_so(artifact: Path) -> None:
    run_alone(FEW_THREADS, artifact)


def test_arrays_that_change_during_a_call_do_no_harm(artifact: Path) -> None:
    run_alone(RACE, artifact)


DAEMON = """
import sys, threading, time
import numpy as np
import engine
model = engine.load(sys.argv[1], threads=1)
ids, lengths = np.ones(64, np.int32), np.array([64], np.int32)
calls = 0
def work():
    global calls
    while True:
        model.forward(ids, lengths)
        calls += 1
threading.Thread(target=work, daemon=True).start()
while calls < 10:
    time.sleep(0.001)
"""


def test_a_daemon_thread_inside_a_call_does_not_end_the_program_when_it_exits(artifact: Path) -> None:
    """Python ends such a thread when it asks for the lock of an interpreter that is no more."""
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", DAEMON, str(artifact)], check=False, timeout=60, cwd=artifact)
        assert done.returncode == 0


def test_more_cpus_than_a_pool_can_have_threads_are_no_error(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "threads_from_quota", lambda: 384)
    assert engine.load(artifact).threads == 256
    with pytest.raises(ValueError, match="threads is 300, must be 1 to 256"):
        engine.load(artifact, threads=300)


def test_a_file_that_is_replaced_while_it_is_read_is_not_taken(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was checked must be what answers."""
    shutil.copytree(artifact, tmp_path / "a")
    check = engine.check_files

    def checked_then_replaced(path: Path, manifest: Any) -> Any:
        found = check(path, manifest)
        shutil.copy(path / "model.safetensors", path / "new")
        (path / "new").rename(path / "model.safetensors")
        return found

    monkeypatch.setattr(engine, "check_files", checked_then_replaced)
    with pytest.raises(ChecksumError, match="was replaced while it was read: load it again"):
        engine.load(tmp_path / "a")
    monkeypatch.undo()
    engine.load(tmp_path / "a")


def test_a_model_from_before_fork_says_so(artifact: Path) -> None:
    """Its threads stayed in the parent: it would wait for them for ever."""
    done = subprocess.run([sys.executable, "-c", FORK, str(artifact)], check=False, timeout=60, cwd=artifact)
    assert done.returncode == 0
