"""The parent's side: starts a worker per engine, talks to it, and watches that it rests while others are timed."""

import json
import os
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Timer
from time import perf_counter, sleep
from types import TracebackType
from typing import Any, Self

from bench.engines import Engine

ROOT = Path(__file__).parents[1]
# Long enough for DeepSparse to compile BERT-Large; what takes longer is killed and reported.
ANSWER_SECONDS = 300.0
# Between an answer and the next engine's turn: threads that spin a little after their last loop are asleep by then.
SETTLE_SECONDS = 0.003
_TICK = os.sysconf("SC_CLK_TCK")


class WorkerError(Exception):
    """An engine could not do what it was asked; the message is the reason."""


class WorkerProcess:
    """One running worker. Leave the `with` block to end it."""

    def __init__(self, engine: Engine, python: Path, log: Path, answer_seconds: float = ANSWER_SECONDS) -> None:
        """Start `python -m bench.worker`; what it prints goes to `log`."""
        self.engine = engine
        self._log = log
        self._answer_seconds = answer_seconds
        self._errors = log.open("wb")
        self._process = subprocess.Popen(
            [str(python), "-m", "bench.worker", engine.module, engine.variant],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false", **engine.variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._rested: tuple[float, float] | None = None
        self._idle_cpu = self._idle_wall = 0.0

    def __enter__(self) -> Self:
        """Return the worker."""
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        """End the process: its input closes; if it does not end by itself, it is killed."""
        assert self._process.stdin and self._process.stdout
        with suppress(BrokenPipeError):  # it is gone already
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def ask(self, **message: Any) -> dict[str, Any]:
        """Send a message and wait for its answer. Raises WorkerError for errors, death and silence."""
        self._count_idle()
        assert self._process.stdin and self._process.stdout
        late = Timer(self._answer_seconds, self._process.kill)
        late.daemon = True
        late.start()
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            expired = not late.is_alive()
            late.cancel()
        if not line:
            self._rested = None
            self._process.kill()  # whatever state it is in, it is of no more use
            self._process.wait()
            reason = f"gave no answer in {self._answer_seconds:.0f} s" if expired else "ended"
            raise WorkerError(f"the worker {reason} at {message['do']!r}: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        sleep(SETTLE_SECONDS)
        self._rested = self._cpu_seconds(), perf_counter()
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def idle_share(self) -> float:
        """Return the CPU time used between an answer and the next message, as a share of one core; should be 0."""
        return self._idle_cpu / self._idle_wall if self._idle_wall else 0.0

    def _count_idle(self) -> None:
        if self._rested is not None and self._process.poll() is None:
            self._idle_cpu += self._cpu_seconds() - self._rested[0]
            self._idle_wall += perf_counter() - self._rested[1]

    def _cpu_seconds(self) -> float:
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / _TICK  # utime and stime of all threads

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "it said nothing"


def start(engine: Engine, pythons: Mapping[str, Path], log: Path) -> WorkerProcess:
    """Start an engine's worker and shake hands. Raises WorkerError where its packages are missing or broken."""
    worker = WorkerProcess(engine, pythons[engine.environment], log)
    try:
        worker.ask(do="hello")
    except WorkerError:
        worker.__exit__(None, None, None)
        raise
    return worker
