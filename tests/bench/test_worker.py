"""Parent and workers: the protocol, real processes of our engine and torch on a tiny model, and what fails in them."""

import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import engines, model_level
from bench.batch import Batch, Prepare, Prepared, random_batch
from bench.conversions import ConversionError, Conversions
from bench.crew import WorkerError, WorkerProcess, start
from bench.engines import ENGINES
from bench.model_level import Crew, cosine_of, measure
from bench.plan import Case
from bench.worker import Worker, serve
from engine import supported_isas
from engine._engine import formats_of

PYTHONS = {"main": Path(sys.executable)}


class Echo:
    """Stands for an engine: its logits are the token ids; a batch with id 13 breaks."""

    def describe(self) -> dict[str, str]:
        return {"echo": "1"}

    def load(self, path: Path, variant: str, threads: int) -> Prepare:  # noqa: ARG002
        if not path.exists():
            raise FileNotFoundError(f"no {path.name}")

        def prepare(batch: Batch) -> Prepared:
            def call() -> Any:
                if any(13 in sequence for sequence in batch.sequences):
                    raise ArithmeticError("thirteen")
                return batch.padded()[0][:, :, None]

            return Prepared(call, batch.without_padding)

        return prepare


def talk(*asks: dict[str, Any]) -> list[dict[str, Any]]:
    answers = io.StringIO()
    serve(Worker(Echo(), ""), io.StringIO("".join(json.dumps(ask) + "\n" for ask in asks)), answers)
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def test_a_batch_is_answered_without_its_padding(tmp_path: Path) -> None:
    load = {"do": "load", "path": str(tmp_path), "threads": 1}
    for together in (True, False):
        _, answer = talk(load, {"do": "batch", "sequences": [[1, 2, 3], [4]], "together": together})
        assert answer["logits"] == [[1], [2], [3], [4]]


def test_a_sample_may_run_before_everything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(
        "os.sched_setscheduler", lambda _, policy, priority: asked.append((policy, priority.sched_priority))
    )
    load = {"do": "load", "path": str(tmp_path), "threads": 1}
    batch, time = {"do": "batch", "sequences": [[1]], "together": True}, {"do": "time", "least_seconds": 0.001}
    assert talk(load, batch, time)[-1]["calls"] and not asked
    assert talk(load, batch, time | {"realtime": True})[-1]["calls"]
    assert {*asked} == {(os.SCHED_RR, 1), (os.SCHED_OTHER, 0)}
    assert asked[0] == (os.SCHED_RR, 1) and asked[-1] == (os.SCHED_OTHER, 0)


def test_a_short_call_is_repeated(tmp_path: Path) -> None:
    asks = [
        {"do": "load", "path": str(tmp_path), "threads": 1},
        {"do": "batch", "sequences": [[1]], "together": True},
        {"do": "time", "least_seconds": 0.005},
    ]
    answer = talk(*asks)[-1]
    assert answer["calls"] > 1
    assert answer["seconds"] * answer["calls"] >= 0.005


def test_errors_are_answers_and_the_worker_goes_on(tmp_path: Path) -> None:
    answers = talk(
        {"do": "batch", "sequences": [[1]], "together": True},
        {"do": "load", "path": str(tmp_path / "nothing"), "threads": 1},
        {"do": "load", "path": str(tmp_path), "threads": 1},
        {"do": "batch", "sequences": [[13]], "together": True},
        {"do": "time", "least_seconds": 0.001},
        {"do": "dance"},
        {"do": "hello"},
    )
    assert [answer.get("error", "") for answer in answers] == [
        "RuntimeError: no model is loaded",
        "FileNotFoundError: no nothing",
        "",
        "ArithmeticError: thirteen",
        "RuntimeError: no batch is prepared",
        "ValueError: unknown message 'dance'",
        "",
    ]


def test_a_cosine_sees_more_than_a_common_offset() -> None:
    logits = np.random.default_rng(0).normal(size=(20, 2))
    assert cosine_of(logits, logits) == pytest.approx(1.0)
    assert cosine_of(10 + logits[::-1], 10 + logits) < 0.9
    assert cosine_of(logits[:5], logits) == 0.0
    assert cosine_of(np.full_like(logits, np.nan), logits) == 0.0
    assert cosine_of(np.ones_like(logits), logits) == 0.0


def test_the_same_lengths_give_the_same_tokens() -> None:
    assert random_batch((3, 5)) == random_batch((3, 5))
    assert random_batch((3, 5)).lengths == (3, 5)
    assert random_batch((3, 5), seed=2) != random_batch((3, 5))


@pytest.fixture(scope="module")
def conversions(tmp_path_factory: pytest.TempPathFactory) -> Conversions:
    return Conversions(tmp_path_factory.mktemp("cache"), PYTHONS, print)


@pytest.fixture
def crew(conversions: Conversions, tmp_path: Path) -> Iterator[Crew]:
    """Real worker processes; the peers' environments count as not installed."""

    def start_worker(name: str) -> WorkerProcess:
        return start(ENGINES[name], PYTHONS, tmp_path / f"{name}.log")

    with ExitStack() as stack:
        yield Crew(start_worker, conversions, stack, print)


def test_our_engine_beside_torch(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_level, "LEAST_SECONDS", 0.001)
    names = ("sparselane", "torch-fp32", "onnxruntime-fp32")
    cases = [Case("tiny", 0.9, (9, 20, 33), 1, names, "mixed", together=together) for together in (True, False)]
    rows = list(measure(cases, crew, 2, lambda _: None))
    times = [(row["engine"], row["round"]) for row in rows if row["status"] == "ok"]
    # In turn, round by round, for each case.
    assert times == 2 * [("sparselane", 0), ("torch-fp32", 0), ("sparselane", 1), ("torch-fp32", 1)]
    assert all(float(row["seconds"]) > 0 for row in rows if row["status"] == "ok")
    notes = {row["engine"]: row["note"] for row in rows if row["status"] == "ok"}
    assert notes["torch-fp32"] == ""
    kernels, _, formats = notes["sparselane"].partition(": ")
    assert kernels == supported_isas()[-1]
    assert all(name.partition(" ")[2] in formats_of(kernels) for name in formats.split(", "))
    absent = [row for row in rows if row["status"] == "absent"]
    assert {row["engine"] for row in absent} == {"onnxruntime-fp32"}
    assert "environment .venv-bench/peers is not installed" in absent[0]["reason"]
    assert set(crew.idle_shares()) == {"sparselane", "torch-fp32"}


def test_a_wrong_answer_has_no_time(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = {**ENGINES, "sparselane": replace(ENGINES["sparselane"], least_cosine=1.1)}
    monkeypatch.setattr(model_level, "ENGINES", strict)
    (wrong,) = measure([Case("tiny", 0.9, (12,), 1, ("sparselane",), "headline")], crew, 1, lambda _: None)
    assert (wrong["status"], wrong["seconds"]) == ("mismatch", "")
    assert 0.99 < wrong["cosine"] <= 1


def test_a_checkpoint_that_cannot_be_made_is_reported_once(tmp_path: Path) -> None:
    notes: list[str] = []
    broken = Conversions(tmp_path, PYTHONS, notes.append)
    for _ in range(2):
        with pytest.raises(ConversionError, match="checkpoint could not be made: KeyError: 'no-such-model'"):
            broken.path("no-such-model", 0.9, "artifact")
    assert notes == ["no-such-model 90 %: making checkpoint"]


def test_a_worker_that_dies_or_hangs_is_an_error(tmp_path: Path) -> None:
    missing = replace(ENGINES["sparselane"], module="no_such_engine")
    with pytest.raises(WorkerError, match=r"ended at 'hello'.*No module named 'bench.engines.no_such_engine'"):
        start(missing, PYTHONS, tmp_path / "log")
    sleeper = tmp_path / "python"
    sleeper.write_text("#!/bin/sh\nexec sleep 60\n")
    sleeper.chmod(0o755)
    with (
        WorkerProcess(ENGINES["sparselane"], sleeper, tmp_path / "log", answer_seconds=0.2) as worker,
        pytest.raises(WorkerError, match="gave no answer in 0 s at 'hello': it said nothing"),
    ):
        worker.ask(do="hello")


def test_every_engine_has_its_module_and_environment() -> None:
    folder = Path(engines.__file__).parent
    for engine in ENGINES.values():
        assert (folder / f"{engine.module}.py").is_file()
        assert engine.environment in ("main", "peers", "deepsparse")
