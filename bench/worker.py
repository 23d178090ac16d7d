"""One engine in a process of its own: reads a JSON line, does it, writes a JSON line. Blocked on stdin in between.

Started by `bench.crew` as `python -m bench.worker MODULE VARIANT`, in that engine's environment. Messages:

    {"do": "hello"}                                  -> {"versions": {...}}
    {"do": "load", "path": ..., "threads": n}        -> {"seconds": ...}
    {"do": "batch", "sequences": [[ids], ...],
     "together": true}                               -> {"logits": [...], "seconds": ..., "note": ...}
                                                        the first call, whose seconds are not quoted
    {"do": "time", "least_seconds": s,
     "realtime": false}                              -> {"seconds": mean of a call, "calls": n}
    anything that fails                              -> {"error": "what went wrong"}
"""

import importlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, TextIO

import numpy as np

from bench.batch import Batch, EngineModule, Prepare

# A call shorter than this is made once untimed before each sample: while other engines ran, the caches filled with
# their weights and the threads fell asleep. For longer calls that is lost in the sum.
WARM_BELOW_SECONDS = 0.1


class Worker:
    """What one engine has loaded, and the four things it can be asked."""

    def __init__(self, module: EngineModule, variant: str) -> None:
        """Load nothing yet."""
        self._module = module
        self._variant = variant
        self._prepare: Prepare | None = None
        self._call: Callable[[], Any] | None = None
        self._last_seconds = 0.0

    def answer(self, ask: Mapping[str, Any]) -> dict[str, Any]:
        """Do what a message says; an exception becomes an answer with "error"."""
        try:
            match ask["do"]:
                case "hello":
                    return {"versions": self._module.describe()}
                case "load":
                    return self._load(ask["path"], ask["threads"])
                case "batch":
                    return self._batch(ask["sequences"], ask["together"])
                case "time":
                    with realtime(asked=ask.get("realtime", False)):
                        return self._time(ask["least_seconds"])
                case unknown:
                    raise ValueError(f"unknown message {unknown!r}")
        except Exception as error:  # a peer may fail in any way; the reason goes into the record
            return {"error": f"{type(error).__name__}: {error}".strip()[:500]}

    def _load(self, path: str, threads: int) -> dict[str, Any]:
        self._prepare = self._call = None  # frees the former model first
        began = perf_counter()
        self._prepare = self._module.load(Path(path), self._variant, threads)
        return {"seconds": perf_counter() - began}

    def _batch(self, sequences: list[list[int]], together: bool) -> dict[str, Any]:
        if self._prepare is None:
            raise RuntimeError("no model is loaded")
        self._call = None
        batches = [sequences] if together else [[sequence] for sequence in sequences]
        prepare = self._prepare
        prepared = [prepare(Batch(tuple(tuple(s) for s in batch))) for batch in batches]

        def call() -> list[Any]:
            return [one.call() for one in prepared]

        began = perf_counter()
        results = call()
        self._last_seconds = perf_counter() - began
        logits = np.concatenate([one.logits(result) for one, result in zip(prepared, results, strict=True)])
        self._call = call
        notes = Counter(one.note for one in prepared if one.note)
        note = ", ".join(text if count == len(prepared) else f"{text} for {count}" for text, count in notes.items())
        return {"logits": logits.round(5).tolist(), "seconds": self._last_seconds, "note": note}

    def _time(self, least_seconds: float) -> dict[str, Any]:
        if self._call is None:
            raise RuntimeError("no batch is prepared")
        call = self._call
        if self._last_seconds < WARM_BELOW_SECONDS:
            call()
        calls, began, elapsed = 0, perf_counter(), 0.0
        while elapsed < least_seconds or calls == 0:
            call()
            calls, elapsed = calls + 1, perf_counter() - began
        self._last_seconds = elapsed / calls
        return {"seconds": elapsed / calls, "calls": calls}


@contextmanager
def realtime(*, asked: bool) -> Iterator[None]:
    """If asked, run the threads of this process before all others of the machine; raises where that is forbidden."""

    def schedule(policy: int, priority: int) -> None:
        for task in Path("/proc/self/task").iterdir():
            os.sched_setscheduler(int(task.name), policy, os.sched_param(priority))

    if not asked:
        yield
        return
    schedule(os.SCHED_RR, 1)
    try:
        yield
    finally:
        schedule(os.SCHED_OTHER, 0)


def serve(worker: Worker, asks: TextIO, answers: TextIO) -> None:
    """Answer line by line until the input ends."""
    for line in asks:
        answers.write(json.dumps(worker.answer(json.loads(line))) + "\n")
        answers.flush()


def main() -> None:
    """Keep stdout for the protocol: what a library prints goes to stderr."""
    module, variant = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    loaded: Any = importlib.import_module(f"bench.engines.{module}")
    serve(Worker(loaded, variant), sys.stdin, answers)


if __name__ == "__main__":
    main()
