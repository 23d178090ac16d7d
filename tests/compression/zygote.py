"""Runs the real command line many times for the price of one import: each run is a forked process of its own.

`Zygote` is the face; the file is also the script that it starts. A run can be killed at its n-th change of a file (open
for writing, rename, remove; counted by Python's audit hook), so that every moment between two changes can be tried.
"""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CHANGES = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")


class Zygote:
    """A Python that has imported the trainer and forks for every command."""

    def __init__(self, folder: Path) -> None:
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._log = (folder / "zygote.log").open("a+")
        self._child = subprocess.Popen(
            [sys.executable, "-m", "tests.compression.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | threads,
            cwd=Path(__file__).parents[2],
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.close()
        self._child.wait(timeout=60)
        self._child.stdout.close()
        self._log.close()

    def run(
        self, *arguments: object, number: int = 0, at: int = 1, path: str = "", file_bytes: int = 0, save: float = 0
    ) -> tuple[int, str]:
        """Run `sparselane-compress ARGUMENTS`; return exit status (minus the signal's number) and all output.

        Signal `number` comes at the `at`-th change of a file whose path starts with `path`. No file may grow beyond
        `file_bytes` (0 = any size). `save` is the number of seconds between two saved states.
        """
        assert self._child.stdin is not None and self._child.stdout is not None
        self._log.truncate(0)  # it is short: `file_bytes` limits it, too
        order = {"arguments": [str(a) for a in arguments], "number": number, "at": at, "path": path}
        self._child.stdin.write(json.dumps(order | {"file_bytes": file_bytes, "save": save}) + "\n")
        self._child.stdin.flush()
        answer = self._child.stdout.readline()
        self._log.seek(0)
        output = self._log.read()
        assert answer, output
        return int(answer), output


def _serve() -> None:
    import compression.cli
    import compression.plan
    import compression.publish  # noqa: F401, imports all there is

    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            _obey(order)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _obey(order: dict[str, Any]) -> None:
    import compression.train
    from compression.cli import app

    os.dup2(2, 1)
    compression.train.SAVE_SECONDS, compression.train.SAVE_COST = order["save"], 0.0
    if order["file_bytes"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_bytes"], order["file_bytes"]))
    # In the background of a shell script, or under nohup, tests inherit that they are ignored; a trainer leaves it so.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if order["number"]:
        _signal_at(order["number"], order["at"], order["path"])
    try:
        app(order["arguments"])
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(70)


def _signal_at(number: int, at: int, path: str) -> None:
    left = at

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in CHANGES and str(arguments[0]).startswith(path):
            writes = event != "open" or (isinstance(arguments[1], str) and set(arguments[1]) & set("wa+"))
            left -= bool(writes)
            if left == 0 and writes:
                os.kill(os.getpid(), signal.Signals(number))

    sys.addaudithook(count)


if __name__ == "__main__":
    _serve()
