"""Load time and resident memory, of the engine alone and of the whole service, each in fresh processes; and how other
levels run the service.

`python -m bench.footprint ARTIFACT THREADS` is the fresh process of the engine; it prints JSON.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, sleep
from typing import Any

ROOT = Path(__file__).parents[1]
START_SECONDS = 60.0


def engine_footprint(artifact: Path, threads: int) -> dict[str, float]:
    """Load an artifact in a fresh process; seconds of the load, bytes of the whole process after it."""
    command = [sys.executable, "-m", "bench.footprint", str(artifact), str(threads)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def service_footprint(artifact: Path, threads: int) -> dict[str, float]:
    """Serve one model; seconds from the start of the process until it is ready, bytes resident then."""
    with TemporaryDirectory() as folder:
        (Path(folder) / artifact.name).symlink_to(artifact.resolve())
        began = perf_counter()
        with service(Path(folder), threads) as (process, _, _):
            seconds = perf_counter() - began
            return {"seconds": seconds, "resident_bytes": resident_bytes(process.pid)}


@contextmanager
def service(models: Path | None, threads: int) -> "Iterator[tuple[subprocess.Popen[bytes], int, int]]":
    """Run `sparselane serve` on free local ports until the block ends; gives process, port and probe port once ready.

    models None: the embedded ones. Raises RuntimeError when it ends or does not get ready in time.
    """
    with socket.socket() as one, socket.socket() as other:
        for free in (one, other):
            free.bind(("127.0.0.1", 0))
        port, probe_port = (int(free.getsockname()[1]) for free in (one, other))
    command = [sys.executable, "-m", "service", "serve", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--probe-port", str(probe_port), "--threads", str(threads), "--log-level", "warning"]
    command += ["--models-dir", str(models)] if models else []
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SPARSELANE_")}
    process = subprocess.Popen(command, cwd=ROOT, env=environment | {"SPARSELANE_NOTICE_SECONDS": "0"})
    try:
        _wait_until_ready(process, port)
        yield process, port, probe_port
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def apart() -> Iterator[Callable[[int], None]]:
    """Give a function that puts the process with an id on the first CPU, and this one, until the end, on the others.

    So a service has one CPU and nobody else has it, as in a pod. With a single CPU nothing is moved.
    """
    cpus = sorted(os.sched_getaffinity(0))

    def pin(pid: int) -> None:
        if len(cpus) > 1:
            for task in Path(f"/proc/{pid}/task").iterdir():
                os.sched_setaffinity(int(task.name), cpus[:1])
            os.sched_setaffinity(0, cpus[1:])

    try:
        yield pin
    finally:
        os.sched_setaffinity(0, cpus)


def _wait_until_ready(process: "subprocess.Popen[bytes]", port: int) -> None:
    end = perf_counter() + START_SECONDS
    while perf_counter() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the service ended with {process.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            sleep(0.005)
    raise RuntimeError(f"the service was not ready after {START_SECONDS:.0f} s")


def resident_bytes(pid: int | str = "self") -> int:
    """Read what a process has in memory now (VmRSS)."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return 1024 * int(status.split("VmRSS:")[1].split()[0])


def measure_load(artifact: Path, threads: int) -> dict[str, Any]:
    """Load in this process, which should be fresh; one forward of 16 tokens shows that it answers."""
    import numpy as np

    import engine

    before, began = resident_bytes(), perf_counter()
    model = engine.load(artifact, threads=threads)
    seconds, after = perf_counter() - began, resident_bytes()
    answer = model.forward(np.full(16, 7, np.int32), np.array([16], np.int32))
    if not np.isfinite(answer).all():
        raise SystemExit("the loaded model answers no numbers; no time is reported")
    return {"seconds": seconds, "resident_bytes": after, "added_bytes": after - before}


if __name__ == "__main__":
    print(json.dumps(measure_load(Path(sys.argv[1]), int(sys.argv[2]))))
