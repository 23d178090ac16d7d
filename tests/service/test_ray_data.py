"""A corpus on Ray Data: two workers, one is killed, then the driver; the bytes are those of `sparselane predict`."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from service.errors import StartupError
from service.ray_data import RUN, ShardAnswers, answer_shards, finished
from tests.service import artifacts
from tests.service.artifacts import CLS
from tests.service.test_cli import run
from tests.service.test_server import ROOT, environment
from tests.waiting import until

SHARDS, ROWS = 6, 200
DRIVER = """
import sys
from pathlib import Path
import ray
from service.ray_data import answer_shards

artifact, corpus, answers, sessions = sys.argv[1:]
ray.init(num_cpus=2, include_dashboard=False, _temp_dir=sessions, object_store_memory=80_000_000)
for done in answer_shards(artifact, Path(corpus).glob("*.ndjson"), answers, workers=2):
    print(done["shard"], done["done"], flush=True)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifacts.write(tmp_path_factory.mktemp("models"), CLS)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for shard in range(SHARDS):
        rows = [{"text": f"the film {row} was good " * (1 + row % 50), "id": f"{shard}.{row}"} for row in range(ROWS)]
        lines = [json.dumps(row) for row in rows]
        lines[7] = "7"
        (folder / f"part-{shard}.ndjson").write_text("\n".join(lines) + "\n")
    return folder


def predicted(model: Path, corpus: Path, folder: Path) -> dict[str, bytes]:
    """Answer each shard by the command, in one process."""
    for shard in sorted(corpus.iterdir()):
        code, _, error = run("predict", model, "--threads", 1, "--input", shard, "--output", folder / shard.name)
        assert code == 0, error
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def answered(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != RUN}


def rows(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("*.ndjson*"))


@pytest.fixture
def sessions() -> Iterator[Path]:
    """Ray keeps sockets here, whose names may have 107 characters."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def start(model: Path, corpus: Path, answers: Path, sessions: Path) -> "subprocess.Popen[str]":
    variables = environment(RAY_USAGE_STATS_ENABLED="0", PYTHONPATH=str(ROOT), RAY_DEDUP_LOGS="0")
    command = [sys.executable, "-c", DRIVER, *map(str, (model, corpus, answers, sessions))]
    return subprocess.Popen(
        command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for_rows(process: "subprocess.Popen[str]", answers: Path, count: int) -> None:
    def enough() -> bool:
        assert process.poll() is None, process.communicate()[0]
        return rows(answers) >= count

    until(enough, 300)


def workers(answers: Path) -> list[int]:
    """Return the processes that have a part file open."""
    found = []
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if descriptor.readlink().parent == answers:
                found.append(int(descriptor.parts[2]))
    return found


def test_a_killed_worker_and_a_killed_driver_leave_the_same_bytes(
    model: Path, corpus: Path, tmp_path: Path, sessions: Path
) -> None:
    pytest.importorskip("ray.data", reason="pip install 'sparselane[ray]'")
    (tmp_path / "whole").mkdir()
    wanted = predicted(model, corpus, tmp_path / "whole")
    answers = tmp_path / "answers"
    with start(model, corpus, answers, sessions) as process:
        wait_for_rows(process, answers, 100)
        os.kill(workers(answers)[0], signal.SIGKILL)
        wait_for_rows(process, answers, 200)
        process.send_signal(signal.SIGKILL)
    until(lambda: not workers(answers))  # Ray ends them a moment after their driver; until then they hold part files
    assert answered(answers) != wanted
    with start(model, corpus, answers, sessions) as process:
        out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert answered(answers) == wanted
    assert "were there" in out or "was done before" in out


def test_the_map_step_answers_a_batch_of_shards_once(model: Path, corpus: Path, tmp_path: Path) -> None:
    shards = [str(corpus / "part-0.ndjson"), str(corpus / "part-1.ndjson")]
    step = ShardAnswers(str(model), str(tmp_path / "answers"), 1, {"top_k": 1})
    first = step({"shard": shards})
    assert first["shard"] == shards
    assert all(f"{ROWS} rows in" in done for done in first["done"])
    before = answered(tmp_path / "answers")
    assert step({"shard": shards})["done"] == ["was done before"] * 2
    assert answered(tmp_path / "answers") == before
    lines = before["part-0.ndjson"].decode().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [f"0.{row}" for row in range(ROWS) if row != 7]


def test_a_folder_of_another_run_is_refused(model: Path, tmp_path: Path) -> None:
    ShardAnswers(str(model), str(tmp_path), 1)
    ShardAnswers(str(model), str(tmp_path), 1)
    with pytest.raises(StartupError, match="a run with another parameters: choose another folder"):
        ShardAnswers(str(model), str(tmp_path), 1, {"top_k": 1})
    assert [path.name for path in tmp_path.iterdir()] == [RUN]


def test_a_shard_is_finished_once_its_part_file_has_gone(tmp_path: Path) -> None:
    target, part = tmp_path / "a.ndjson", tmp_path / "a.ndjson.part"
    assert not finished(target)
    part.touch()
    target.touch()
    assert not finished(target)
    part.unlink()
    assert finished(target)


def test_shards_that_cannot_be_meant_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="there are no shards"):
        list(answer_shards(model, [], tmp_path, workers=1))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.ndjson").touch()
    with pytest.raises(StartupError, match=r"several shards are called x.ndjson"):
        list(answer_shards(model, tmp_path.glob("*/x.ndjson"), tmp_path / "out", workers=1))
