"""Who answers probes goes before the engine and the event loop, and those go alike."""

import os
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest

import engine
from service.priority import MOST, NICENESS
from tests.service import artifacts
from tests.service.artifacts import CLS
from tests.service.test_server import COMMAND, Process, running
from tests.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere niceness belongs to processes")
# One more than the caller's, where there are CPUs: the engine has a thread of its own then.
THREADS = min(2, engine.threads_from_quota())


def niceness(server: Process) -> Counter[int]:
    """How many threads have which niceness."""
    tasks = Path(f"/proc/{server.process.pid}/task").iterdir()
    return Counter(os.getpriority(os.PRIO_PROCESS, int(task.name)) for task in tasks)


def test_all_threads_but_the_probes_come_last(tmp_path: Path) -> None:
    artifacts.write(tmp_path, CLS)
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    last = min(MOST, usual + NICENESS)
    with running(tmp_path, program=[*COMMAND[:-1], str(THREADS)]) as server:
        for name in ("sentiment", "another"):  # the second is loaded by a thread that starts then
            body = {"inputs": "a good film", "model": name}
            assert server.ask("POST", "/v1/text-classification", body)[0] == 200
            assert os.getpriority(os.PRIO_PROCESS, server.process.pid) == last
            found = niceness(server)
            assert found == {usual: 1, last: found.total() - 1} and found.total() > 1 + THREADS
            if name == "sentiment":
                artifacts.write(tmp_path, CLS, name="another")
                server.process.send_signal(signal.SIGHUP)
                until(lambda: 'sparselane_model_ready{model="another"} 1.0' in server.probe("/metrics")[1])
        assert server.stop() == 0
