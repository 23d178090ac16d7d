"""How long from the start of the server's process to its first answer, and what does an image weigh?

    python -m bench.image start --rounds 9 --url http://127.0.0.1:8000 -- sparselane serve
    python -m bench.image size ROOTFS

`start` runs the command again and again, asks for an answer until there is one, and stops it with SIGTERM. The first
round may read from the disk what the others find in memory. `size` adds up what lies in an unpacked image, by part.
"""

import argparse
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter, sleep
from urllib.parse import urlsplit

from bench.record import write_rows

PATIENCE_SECONDS = 60.0
# Between two attempts: small beside what is measured, and no load.
PAUSE_SECONDS = 0.002
PATH, QUESTION, WORD = "/v1/text-classification", {"inputs": "a warm, funny and deeply moving film"}, "positive"
# Where Python's packages lie; the rest, Debian's Python and libraries, is the base.
ADDED = Path("opt/sparselane")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; --csv keeps the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    start = actions.add_parser("start", help="time to the first answer")
    start.add_argument("--rounds", type=int, default=9)
    start.add_argument("--url", default="http://127.0.0.1:8000", help="where the command answers")
    start.add_argument("command", nargs="+")
    size = actions.add_parser("size", help="bytes by part")
    size.add_argument("rootfs", type=Path)
    for action in (start, size):
        action.add_argument("--csv", type=Path)
    options = parser.parse_args(arguments)
    rows: list[dict[str, str | int]]
    if options.action == "start":
        starts = [first_answer(options.command, options.url) for _ in range(options.rounds)]
        rows = [{"seconds": f"{seconds:.3f}", "cpu_seconds": f"{cpu:.2f}"} for seconds, cpu in starts]
        for what, values in zip(("first answer after", "CPU until then"), zip(*starts, strict=True), strict=True):
            print(f"{what} {statistics.median(values):.2f} s (median), {min(values):.2f} to {max(values):.2f}")
    else:
        parts = sizes(options.rootfs)
        rows = [{"part": part, "bytes": count} for part, count in parts.items()]
        print("\n".join(f"{part}: {count / 1e6:.1f} MB" for part, count in parts.items()))
    if options.csv:
        write_rows(options.csv, rows)


def sizes(rootfs: Path) -> dict[str, int]:
    """Return the bytes of files in an unpacked image: base, models, service, each package; large ones first."""
    found: dict[str, int] = {}
    for path in rootfs.rglob("*"):
        if path.is_file() and not path.is_symlink():
            part = part_of(path.relative_to(rootfs))
            found[part] = found.get(part, 0) + path.stat().st_size
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def part_of(path: Path) -> str:
    """Return what a file of the image belongs to."""
    if not path.is_relative_to(ADDED):
        return "base"
    inside = path.relative_to(ADDED).parts
    if "site-packages" not in inside:
        return "environment"
    package = inside[inside.index("site-packages") + 1 :]
    return "models" if package[:2] == ("service", "models") else package[0]


def first_answer(command: Sequence[str], url: str) -> tuple[float, float]:
    """Start a server, return the seconds until its first right answer, and those of CPU that it took; stop it.

    The latter are the command's own: nothing where it asks somebody else to start the server, as `docker run` does.

    Raises:
        RuntimeError: it ended, answered something else, or did not answer in time.
    """
    address = urlsplit(url)
    began = perf_counter()
    process = subprocess.Popen(command, stdout=sys.stderr)
    try:
        while process.poll() is None and perf_counter() < began + PATIENCE_SECONDS:
            if (answer := ask(str(address.hostname), address.port or 80)) is not None:
                seconds, cpu = perf_counter() - began, cpu_seconds(process.pid)
                if WORD not in answer:
                    raise RuntimeError(f"another answer: {answer[:200]}")
                return seconds, cpu
            sleep(PAUSE_SECONDS)
        raise RuntimeError(f"no answer; the process {'ended' if process.poll() is not None else 'runs'}")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def cpu_seconds(pid: int) -> float:
    """Return the time that a process's threads had on CPUs (proc_pid_stat(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ask(host: str, port: int) -> str | None:
    """Return the body of an answer; None where nobody listens yet."""
    connection = http.client.HTTPConnection(host, port, timeout=PATIENCE_SECONDS)
    try:
        connection.request("POST", PATH, json.dumps(QUESTION), {"content-type": "application/json"})
        return connection.getresponse().read().decode()
    except ConnectionError:
        return None
    finally:
        connection.close()


if __name__ == "__main__":
    main()
