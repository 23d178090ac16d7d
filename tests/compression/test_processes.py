"""Two real processes against one, through the launchers that users call."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from compression import processes
from compression.cli import app
from compression.train import read_metrics
from tests.compression import tiny

SURGEON = 'criterion = "obert"\nfisher = {gradients = 5, batch_size = 4, block = 8, damping = 1e-6}'
ROOT = Path(__file__).parents[2]


def launch(*options: str) -> "subprocess.Popen[str]":
    """Start the real command in two processes, as docs/compression.md says."""
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command = [sys.executable, *launcher, "-m", "compression", "run", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    )


def test_two_processes_stopped_once_give_the_result_of_one(tmp_path: Path) -> None:
    """Tolerance: 99.9 % of the weights of every checkpoint within 2e-4, every logged loss within 1e-3. Sums in another
    order differ by some 1e-8 a step, which grows over 120 steps; a weight at the very edge of a mask may be pruned in
    one run and not in the other. A mean of means instead of a mean over all tokens is off by 2e-3 in the teacher."""
    base = tiny.checkpoint(tmp_path / "base", family="distilbert")
    text = tiny.recipe("token-classification", base, tmp_path, epochs=2)
    # Odd batches: parts of 8 and 7 windows, cut again in "prune", a last batch of 6. Dropout draws other numbers in
    # every process, so there is none.
    text = text.replace("batch_size = 16", "batch_size = 15").replace("dropout = 0.1", "dropout = 0.0")
    text = text.replace("epochs = 2", "epochs = 12", 1)  # the teacher: long enough to be stopped in
    (tmp_path / "tiny.toml").write_text(text)
    options = [str(tmp_path / "tiny.toml"), "--data", str(tmp_path), "--threads", "1", "--run-folder"]
    stopped = launch(*options, str(tmp_path / "two"))
    while not list(read_metrics(tmp_path / "two")):
        assert stopped.poll() is None, stopped.communicate()
        time.sleep(0.05)
    stopped.send_signal(signal.SIGINT)  # the launcher passes it on to both processes
    _, errors = stopped.communicate(timeout=120)
    assert stopped.returncode != 0 and "state.pt is kept: the same command goes on" in errors
    assert (tmp_path / "two" / "state.pt").is_file() and not (tmp_path / "two" / "teacher").exists()
    two = launch(*options, str(tmp_path / "two"))
    one = CliRunner().invoke(app, ["run", *options, str(tmp_path / "one")])
    assert one.exit_code == 0, one.output
    output, errors = two.communicate(timeout=300)
    assert two.returncode == 0, errors
    assert output.count("artifact: entity_f1 on made up dev") == 1, "the main process alone speaks"
    for name in ("teacher", "pruned", "quantized-1", "quantized"):
        alone, together = (load_file(tmp_path / run / name / "model.safetensors") for run in ("one", "two"))
        apart = np.concatenate([np.abs(alone[key] - together[key]).ravel() for key in alone])
        assert np.quantile(apart, 0.999) < 2e-4, name
    losses = [[line["loss"] for line in read_metrics(tmp_path / run) if "step" in line] for run in ("one", "two")]
    assert len(losses[0]) > 15 and losses[1] == pytest.approx(losses[0], abs=1e-3)
    left = [{path.name for path in (tmp_path / run).iterdir()} for run in ("one", "two")]
    assert left[0] == left[1]


def test_two_processes_make_the_language_model_of_one(tmp_path: Path) -> None:
    """Tolerances as above. Every window has another number of masked tokens; the surgeon's Fisher matrices are sums
    over both processes."""
    text = tiny.language_recipe(tiny.checkpoint(tmp_path / "base"), tmp_path, next_sentence=True)
    text = text.replace("reselect_until = 0.8", SURGEON).replace("batch_size = 8", "batch_size = 7")
    (tmp_path / "tiny.toml").write_text(text.replace("dropout = 0.1", "dropout = 0.0"))
    options = [str(tmp_path / "tiny.toml"), "--data", str(tmp_path), "--threads", "1", "--run-folder"]
    two = launch(*options, str(tmp_path / "two"))
    one = CliRunner().invoke(app, ["run", *options, str(tmp_path / "one")])
    assert one.exit_code == 0, one.output
    output, errors = two.communicate(timeout=300)
    assert two.returncode == 0, errors
    assert output.count("perplexity on") == 1, "the main process alone speaks"
    for name in ("teacher", "pruned"):
        alone, together = (load_file(tmp_path / run / name / "model.safetensors") for run in ("one", "two"))
        apart = np.concatenate([np.abs(alone[key] - together[key]).ravel() for key in alone])
        assert np.quantile(apart, 0.999) < 2e-4, name
    losses = [[line["loss"] for line in read_metrics(tmp_path / run) if "step" in line] for run in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_parts_cover_the_batch_once(monkeypatch: pytest.MonkeyPatch, count: int, accumulation: int) -> None:
    for batch in (list(range(16)), [3, 1], [7]):
        found: list[int] = []
        for index in range(count):
            here = SimpleNamespace(num_processes=count, process_index=index)
            monkeypatch.setattr(processes, "state", lambda here=here: here)
            parts = processes.take_parts(batch, accumulation)
            assert len(parts) <= accumulation and all(parts)
            found += [number for part in parts for number in part]
        assert sorted(found) == sorted(batch)


def test_several_processes_that_accelerate_would_not_start_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not processes.launched_alone()
    monkeypatch.setenv("MASTER_PORT", "29500")  # what `accelerate launch --cpu --num_processes 2` sets, and no more
    assert processes.launched_alone()
