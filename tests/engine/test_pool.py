"""A call of the engine and the process around it: threads that models share, Python's lock, the floating-point mode."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.random_artifact import write_random_artifact

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts") / "qa"
    write_random_artifact(folder, layers=3, hidden=36, heads=4, ffn=75, positions=100, vocabulary=150)
    return folder


def run(program: str, *arguments: object) -> None:
    """Run a program in a process of its own: its threads and modes are the process'."""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True, text=True, timeout=300, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


# Nobody is asked to give the lock back: with an interval so long a thread has it until it waits for something.
GOES_ON = """
import sys, threading, time
import numpy as np
import engine

model = engine.load(sys.argv[1], threads=1)
call = getattr(model, sys.argv[2])
counted, done = 0, threading.Event()

def count():
    global counted
    while not done.is_set():
        counted += 1
        time.sleep(0.0005)

sys.setswitchinterval(1000)
counter = threading.Thread(target=count)
counter.start()
while not counted:
    time.sleep(0.001)
arguments = np.ones(100 * 500, np.int32), np.full(500, 100, np.int32)
before = counted
call(*arguments)
after = counted
done.set()
counter.join()
assert after > before, "no other thread of Python ran while the engine did"
"""


@pytest.mark.parametrize("method", ["forward", "hidden_states"])
def test_other_python_threads_go_on_during_a_call(artifact: Path, method: str) -> None:
    run(GOES_ON, artifact, method)


SHARED = """
import gc, sys, time
from pathlib import Path
import numpy as np
import engine

engine.threads_from_quota = lambda: 8  # whatever this machine has

def workers():
    names = []
    for task in Path("/proc/self/task").iterdir():
        try:
            names.append((task / "comm").read_text().strip())
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            pass
    return sorted(name for name in names if name.startswith("sparselane/"))

def load(threads):
    return engine.load(sys.argv[1], threads=threads)

def ends_with(expected):
    # A thread that was joined may be listed for a moment.
    end = time.monotonic() + 120
    gc.collect()
    while workers() != expected:
        assert time.monotonic() < end, (workers(), expected)
        time.sleep(0.01)

arguments = np.ones(60, np.int32), np.array([30, 30], np.int32)
assert workers() == []
one, same, alone = load(4), load(4), load(1)
assert workers() == ["sparselane/1", "sparselane/2", "sparselane/3"], workers()
other = load(2)
assert len(workers()) == 3 + 1, workers()
expected = alone.forward(*arguments).tobytes()
for model in (one, same, other, one):
    assert model.forward(*arguments).tobytes() == expected
del model, other
ends_with(["sparselane/1", "sparselane/2", "sparselane/3"])
del one
gc.collect()
assert same.forward(*arguments).tobytes() == expected
ends_with(["sparselane/1", "sparselane/2", "sparselane/3"])
del same
ends_with([])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_models_that_ask_for_the_same_number_share_one_pool_and_its_threads_end_with_the_last(artifact: Path) -> None:
    run(SHARED, artifact)


# FE_UPWARD of <fenv.h>.
UPWARD = {"x86_64": 0x800, "AMD64": 0x800, "aarch64": 0x400000, "arm64": 0x400000}

ROUNDS_UPWARD = """
import ctypes, ctypes.util, sys
import numpy as np
import engine

engine.threads_from_quota = lambda: 8
c, upward = ctypes.CDLL(ctypes.util.find_library("m")), int(sys.argv[2])
# So much that every thread has a part of it.
lengths = np.array([100, 7, 93, 100] * 50, np.int32)
arguments = np.arange(lengths.sum(), dtype=np.int32) % 150, lengths
before = engine.load(sys.argv[1], threads=2)
expected = before.forward(*arguments).tobytes(), before.hidden_states(*arguments).tobytes()
assert c.fegetround() == 0 and c.fesetround(upward) == 0
assert np.float32(1) + np.float32(1e-9) > 1, "this mode changes nothing here"
# The other threads of the last one are made in this mode.
for model in (before, engine.load(sys.argv[1], threads=1), engine.load(sys.argv[1], threads=3)):
    assert model.forward(*arguments).tobytes() == expected[0]
    assert c.fegetround() == upward, "the caller's mode is the caller's"
    assert model.hidden_states(*arguments).tobytes() == expected[1]
    assert c.fegetround() == upward
try:
    model.forward(arguments[0], arguments[1][:1])
except ValueError:
    assert c.fegetround() == upward
else:
    sys.exit("a wrong call was answered")
"""


@pytest.mark.skipif(platform.machine() not in UPWARD, reason="the mode's number is not known for this CPU")
def test_the_callers_floating_point_mode_changes_no_bit_and_is_his_again(artifact: Path) -> None:
    run(ROUNDS_UPWARD, artifact, UPWARD[platform.machine()])
