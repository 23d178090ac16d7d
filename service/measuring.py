"""The curve of a model on this machine: the engine timed by threads, the rest of a request by the real server's CPU."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, sleep
from typing import Any, Final

import engine
from service.cost import measured
from service.curve import Curve, EngineSeconds
from service.errors import StartupError
from service.loading import load_model
from service.models import Model
from service.settings import PREFIX

START_SECONDS: Final = 60.0
# Measurements of the engine, of five tries of a batch each.
ROUNDS: Final = 5
# The kernel counts CPU time in hundredths of a second: this long, that is under a percent.
LOAD_SECONDS: Final = 1.5
WARM_SECONDS: Final = 0.3
# Enough that batches form, as they do under load; the event loop then turns once for several requests.
CLIENTS: Final = 8
# Words of the short text, and share of a window that the long one fills.
SHORT_WORDS, LONG_SHARE = 8, 0.75
# No measurement is so good that a request costs less than this outside of the engine.
LEAST_SECONDS: Final = 5e-5


@dataclass(frozen=True)
class _Work:
    """What the server did between two looks: requests, CPU seconds, calls of the engine, tokens of one request."""

    requests: int
    cpu: float
    calls: float
    tokens: float


def measure_curve(path: Path, max_batch_tokens: int, most_threads: int, progress: Callable[[str], None]) -> Curve:
    """Measure the artifact at `path` with 1, 2, 4, ... and `most_threads` threads; takes about ten seconds.

    Raises:
        engine.ArtifactError, ValueError, StartupError, GoldenError: see `load_model`; StartupError, too, where the
            server does not start or does not answer.
    """
    counts = sorted({1, most_threads} | {2**n for n in range(1, most_threads.bit_length()) if 2**n <= most_threads})
    seconds = {}
    for threads in reversed(counts):
        progress(f"the engine with {threads} thread{'s' if threads > 1 else ''}")
        model = load_model(path, threads)
        seconds[threads] = _seconds(model)
    window = model.windows.length
    progress("the server around it")
    with _server(path, max_batch_tokens) as server:
        loads = [_load(server, model, words) for words in (SHORT_WORDS, int(LONG_SHARE * window))]
        resident = int(_metrics(server.probes)["process_resident_memory_bytes"])
    outside = [(work.tokens, _outside(work, seconds[1], window)) for work in loads]
    slope = max(0.0, (outside[1][1] - outside[0][1]) / max(1.0, outside[1][0] - outside[0][0]))
    return Curve(
        model=model.name,
        window=window,
        max_batch_tokens=max_batch_tokens,
        engine=seconds,
        per_request=max(LEAST_SECONDS, outside[0][1] - outside[0][0] * slope),
        per_request_token=slope,
        resident_bytes=resident,
    )


def _seconds(model: Model) -> EngineSeconds:
    """Return the fastest of several measurements: whatever else runs can only slow one down."""
    length, token = model.windows.length, model.windows.tokenizer.cls
    costs = [model.cost, *(measured(model.forward, length, token) for _ in range(ROUNDS))]
    cost = min(costs, key=lambda cost: cost.call([cost.window(length)]))
    return EngineSeconds(per_call=cost.per_call, per_token=cost.per_token, per_square=cost.per_square)


def _outside(work: _Work, seconds: EngineSeconds, window: int) -> float:
    """Return the CPU seconds of one request that were not the engine's."""
    inside = work.calls * seconds.per_call + work.requests * seconds.sequences(work.tokens, window)
    return max(LEAST_SECONDS, (work.cpu - inside) / work.requests)


@dataclass(frozen=True)
class _Server:
    """Where a server that was started listens: port of requests, port of probes."""

    port: int
    probes: int


@contextmanager
def _server(path: Path, max_batch_tokens: int) -> Iterator[_Server]:
    """Serve one artifact with one thread until the block ends."""
    with socket.socket() as one, socket.socket() as other, TemporaryDirectory() as folder:
        for free in (one, other):
            free.bind(("127.0.0.1", 0))
        server = _Server(one.getsockname()[1], other.getsockname()[1])
        (Path(folder) / path.resolve().name).symlink_to(path.resolve())
        settings = {"HOST": "127.0.0.1", "PORT": server.port, "PROBE_PORT": server.probes, "MODELS_DIR": folder}
        settings |= {"THREADS": 1, "MAX_BATCH_TOKENS": max_batch_tokens, "LOG_LEVEL": "warning", "NOTICE_SECONDS": 0}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        kept = {name: os.environ[name] for name in ("SPARSELANE_ISA",) if name in os.environ}
        environment = inherited | kept | {PREFIX + name: str(value) for name, value in settings.items()}
        one.close()
        other.close()
        process = subprocess.Popen([sys.executable, "-m", "service.server"], env=environment, stdout=subprocess.DEVNULL)
        try:
            _wait_until_ready(process, server.probes)
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(process: "subprocess.Popen[bytes]", port: int) -> None:
    end = perf_counter() + START_SECONDS
    while perf_counter() < end:
        if process.poll() is not None:
            raise StartupError(f"the server to measure ended with {process.returncode}; its log is above")
        try:
            if _get(port, "/readyz")[0] == 200:
                return
        except OSError:
            sleep(0.02)
    raise StartupError(f"the server to measure was not ready after {START_SECONDS:.0f} s")


def _get(port: int, path: str) -> tuple[int, str]:
    with closing(HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def _metrics(port: int) -> dict[str, float]:
    """Return the server's metrics, summed over their labels."""
    found: dict[str, float] = {}
    for line in _get(port, "/metrics")[1].splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            name = name.partition("{")[0]
            found[name] = found.get(name, 0.0) + float(value)
    return found


def _load(server: _Server, model: Model, words: int) -> _Work:
    """Let clients ask one text again and again, each when it has its answer; return what that cost."""
    body = json.dumps({"inputs": _input(model, "the " * words)})
    _ask_together(server.port, model.task, body, WARM_SECONDS)
    before = _metrics(server.probes)
    requests = _ask_together(server.port, model.task, body, LOAD_SECONDS)
    after = _metrics(server.probes)
    difference = {name: after[name] - before.get(name, 0.0) for name in after}
    tokens = difference["sparselane_input_tokens_sum"] / requests
    return _Work(requests, difference["process_cpu_seconds_total"], difference["sparselane_batch_size_count"], tokens)


def _input(model: Model, text: str) -> Any:
    if model.task == "question-answering":
        return {"question": "when", "context": text}
    return {"text": text, "text_pair": "when"} if model.pairs else text


def _ask_together(port: int, task: str, body: str, seconds: float) -> int:
    end = perf_counter() + seconds
    with ThreadPoolExecutor(CLIENTS) as threads:
        return sum(threads.map(lambda _: _ask(port, f"/v1/{task}", body, end), range(CLIENTS)))


def _ask(port: int, path: str, body: str, end: float) -> int:
    headers: Mapping[str, str] = {"content-type": "application/json"}
    asked = 0
    with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        while not asked or perf_counter() < end:
            connection.request("POST", path, body, dict(headers))
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 200:
                raise StartupError(f"the server to measure answers {answer.status}: {text[:200].decode()}")
            asked += 1
    return asked


def most_threads(cores: int) -> int:
    """Return how many threads are worth measuring here to plan for pods of so many cores."""
    return max(1, min(cores, engine.threads_from_quota()))
