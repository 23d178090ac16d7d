"""The model level: every case, every engine in turn, round by round; an answer is checked before a time is taken."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.batch import random_batch
from bench.conversions import ConversionError, Conversions
from bench.crew import WorkerError, WorkerProcess
from bench.engines import ENGINES, REFERENCE
from bench.plan import Case

# A sample repeats a fast call until this much time has passed: clock and wake-up are lost in it.
LEAST_SECONDS = 0.02

Row = dict[str, Any]


class Crew:
    """The workers of a run, started when first asked for; an engine that fails is named once and then left out."""

    def __init__(
        self,
        start: Callable[[str], WorkerProcess],
        conversions: Conversions,
        stack: ExitStack,
        note: Callable[[str], None],
        *,
        realtime: bool = False,
    ) -> None:
        """`start` makes the worker of an engine or raises WorkerError; the stack ends it."""
        self._start = start
        self._conversions = conversions
        self._stack = stack
        self._note = note
        self._realtime = realtime
        self._workers: dict[str, WorkerProcess] = {}
        self._loaded: dict[str, tuple[str, float, int]] = {}
        self.absent: dict[str, str] = {}
        self.notes: dict[str, str] = {}

    def ready(self, engine: str, case: Case) -> WorkerProcess:
        """Return the engine's worker with the case's model loaded. Raises WorkerError or ConversionError."""
        path = self._conversions.path(case.model, case.sparsity, ENGINES[engine].form)
        worker = self._worker(engine)
        wanted = case.model, case.sparsity, case.threads
        if self._loaded.get(engine) != wanted:
            self._note(f"{engine}: loading {case.model} {100 * case.sparsity:g} %, {case.threads} threads")
            self._loaded.pop(engine, None)
            self._ask(engine, worker, do="load", path=str(path), threads=case.threads)
            self._loaded[engine] = wanted
        return worker

    def first_answer(self, engine: str, case: Case) -> npt.NDArray[np.float64]:
        """Return the logits of the case's batch [all tokens, labels]."""
        worker = self.ready(engine, case)
        sequences = random_batch(case.lengths).sequences
        answer = self._ask(engine, worker, do="batch", sequences=sequences, together=case.together)
        self.notes[engine] = answer["note"]
        return np.array(answer["logits"])

    def sample(self, engine: str, least_seconds: float) -> dict[str, Any]:
        """Take one timed sample of what was asked last."""
        message = {"do": "time", "least_seconds": least_seconds, "realtime": self._realtime}
        return self._ask(engine, self._workers[engine], **message)

    def idle_shares(self) -> Mapping[str, float]:
        """Return the CPU that each engine used between its samples, as a share of one core."""
        return {name: worker.idle_share() for name, worker in self._workers.items()}

    def _worker(self, engine: str) -> WorkerProcess:
        if engine in self.absent:
            raise WorkerError(self.absent[engine])
        if engine not in self._workers:
            try:
                self._workers[engine] = self._stack.enter_context(self._start(engine))
            except WorkerError as error:
                self.absent[engine] = str(error)
                raise
        return self._workers[engine]

    def _ask(self, engine: str, worker: WorkerProcess, **message: Any) -> dict[str, Any]:
        """Ask; a worker that died is forgotten, so that the next case starts a new one."""
        try:
            return worker.ask(**message)
        except WorkerError:
            if not worker.alive:
                self._workers.pop(engine, None)
                self._loaded.pop(engine, None)
            raise


def measure(cases: Sequence[Case], crew: Crew, repeats: int, progress: Callable[[Case], None]) -> Iterator[Row]:
    """Give the rows of models.csv: one per sample, and one per engine and case without a time, with the reason."""
    for case in cases:
        progress(case)
        yield from measure_case(case, crew, repeats)


def measure_case(case: Case, crew: Crew, repeats: int) -> Iterator[Row]:
    """Check all answers of a case, then time the engines whose answer was right, in turn, `repeats` times."""
    common = {
        "purpose": case.purpose,
        "model": case.model,
        "sparsity": case.sparsity,
        "shape": case.shape,
        "tokens": sum(case.lengths),
        "batch": len(case.lengths),
        "longest": max(case.lengths),
        "threads": case.threads,
    }
    try:
        reference = crew.first_answer(REFERENCE, case)
    except (WorkerError, ConversionError) as error:
        yield from (common | _row(engine, "unchecked", reason=f"no reference: {error}") for engine in case.engines)
        return
    cosines: dict[str, float] = {}
    for engine in case.engines:
        try:
            answer = reference if engine == REFERENCE else crew.first_answer(engine, case)
        except (WorkerError, ConversionError) as error:
            yield common | _row(engine, "absent", reason=str(error))
            continue
        cosine, least = cosine_of(answer, reference), ENGINES[engine].least_cosine
        if cosine >= least:
            cosines[engine] = cosine
        else:
            yield common | _row(engine, "mismatch", cosine=cosine, reason=f"cosine below {least}: no time is reported")
    yield from (common | row for row in _rounds(cosines, crew, repeats))


def _rounds(cosines: Mapping[str, float], crew: Crew, repeats: int) -> Iterable[Row]:
    failed: set[str] = set()
    for number in range(repeats):
        for engine, cosine in cosines.items():
            if engine in failed:
                continue
            try:
                sample = crew.sample(engine, LEAST_SECONDS)
            except WorkerError as error:
                failed.add(engine)
                yield _row(engine, "failed", cosine=cosine, reason=str(error))
                continue
            yield _row(engine, "ok", cosine=cosine) | {"round": number, **sample, "note": crew.notes[engine]}


def _row(engine: str, status: str, *, cosine: float | None = None, reason: str = "") -> Row:
    return {
        "engine": engine,
        "status": status,
        "round": "",
        "seconds": "",
        "calls": "",
        "cosine": "" if cosine is None else round(cosine, 6),
        "reason": reason,
        "note": "",
    }


def cosine_of(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Return the cosine of two logit arrays about their means; 0 where a shape or a number is wrong."""
    if a.shape != b.shape or not np.isfinite(a).all():
        return 0.0
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)  # a common offset would hide differences
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / norm if norm else 0.0


def log_path(folder: Path, engine: str) -> Path:
    """Where a worker's own output goes."""
    return folder / f"{engine}.log"
