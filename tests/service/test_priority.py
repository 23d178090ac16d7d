"""Who answers probes and reads requests goes before the engine."""

import os
import signal
import sys
from pathlib import Path
from time import sleep

import pytest

import engine
from service.priority import ENGINE_THREADS, MOST, NICENESS
from tests.service import artifacts
from tests.service.artifacts import CLS
from tests.service.test_server import COMMAND, Process, running

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere niceness belongs to processes")
TWO_THREADS = [*COMMAND[:-1], "2"]
needs_two_cpus = pytest.mark.skipif(engine.threads_from_quota() < 2, reason="needs two CPUs")


def niceness(server: Process) -> list[tuple[str, int]]:
    """Name and niceness of each thread."""
    tasks = Path(f"/proc/{server.process.pid}/task").iterdir()
    return [((task / "comm").read_text(), os.getpriority(os.PRIO_PROCESS, int(task.name))) for task in tasks]


@needs_two_cpus
def test_the_engines_threads_and_no_others_come_last(tmp_path: Path) -> None:
    artifacts.write(tmp_path, CLS)
    with running(tmp_path, program=TWO_THREADS) as server:
        usual = os.getpriority(os.PRIO_PROCESS, server.process.pid)
        last = min(MOST, usual + NICENESS)
        for loaded, lowered in (("sentiment", 1), ("another", 2)):  # who calls the engine; and who loads a model
            body = {"inputs": "a good film", "model": loaded}
            assert server.ask("POST", "/v1/text-classification", body)[0] == 200
            found = niceness(server)
            workers = [nice for name, nice in found if name.startswith(ENGINE_THREADS)]
            others = [nice for name, nice in found if not name.startswith(ENGINE_THREADS)]
            assert workers == [last]  # all models share them
            assert others.count(last) == lowered and set(others) == {usual, last}
            if lowered == 1:
                artifacts.write(tmp_path, CLS, name="another")
                server.process.send_signal(signal.SIGHUP)
                while 'sparselane_model_ready{model="another"} 1.0' not in server.probe("/metrics")[1]:
                    sleep(0.1)
        assert server.stop() == 0
