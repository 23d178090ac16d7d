"""The whole second-order step on real small models, in one process and in two."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from typer.testing import CliRunner

import engine
from compression import fisher, prune, surgeon
from compression.checkpoint import encoder_matrices, load_model
from compression.cli import app
from compression.failures import InterruptedTrainingError
from compression.loop import Stage
from compression.objective import collate, output_of, task_loss
from compression.patterns import pattern_of
from compression.recipe import Fisher, Prune, Training
from compression.run import Prepared
from compression.train import train
from tests.compression import tiny
from tests.compression.test_train import prepared

FISHER = Fisher(gradients=8, batch_size=4, block=16, damping=1e-5)
TRAINING = Training(epochs=10, learning_rate=3e-3, batch_size=16, dropout=0.0)


def patient(one: Prepared, model: Any) -> surgeon.Patient:
    def loss(numbers: Sequence[int]) -> Tensor:
        batch = collate([one.train_windows[i] for i in numbers], torch.device("cpu"))
        return task_loss(one.recipe.task.name, output_of(model, batch).logits, batch)

    lengths = [len(window.ids) for window in one.train_windows]
    return surgeon.Patient(model, encoder_matrices(model), loss, lengths, Accelerator(cpu=True))


def untrained(tmp_path: Path, task: str = "text-classification", dropout: float = 0.0) -> tuple[Prepared, Any]:
    one = prepared(tmp_path, task)
    torch.manual_seed(0)
    return one, load_model(one.recipe.checkpoint, one.recipe.task, dropout=dropout)


def trained(tmp_path: Path) -> tuple[Prepared, Any]:
    """A model whose matrices matter: fitted from random weights ten times as large as BERT's."""
    one, model = untrained(tmp_path)
    with torch.no_grad():
        for matrix in encoder_matrices(model).values():
            matrix.weight.normal_(std=0.2)
    train(model, Stage("teacher", one.recipe.task.name, TRAINING, 0, one.train_windows, {}, {}), one.folder)
    return one, model


def test_batches_come_from_the_seed_and_use_every_window_before_any_twice() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 40)
    settings = Fisher(gradients=15, batch_size=4)
    batches = surgeon.sample_batches(lengths, settings, (1, 2, 3))
    assert batches == surgeon.sample_batches(lengths, settings, (1, 2, 3))
    assert batches != surgeon.sample_batches(lengths, settings, (1, 2, 4))
    assert [len(batch) for batch in batches] == [4] * 15
    counts = np.bincount(np.concatenate(batches), minlength=40)
    assert counts.min() == 1 and counts.max() == 2
    padding = sum(4 * lengths[batch].max() - lengths[batch].sum() for batch in batches)
    assert padding < 0.1 * sum(lengths[batch].sum() for batch in batches)


def test_the_measured_matrix_is_that_of_the_batches_gradients(tmp_path: Path) -> None:
    one, model = untrained(tmp_path, dropout=0.3)
    model.train()
    subject = patient(one, model)
    batches = surgeon.sample_batches(subject.lengths, FISHER, (0,))
    masks = prune.magnitude_masks(subject.matrices, 0.5)
    found = surgeon.measure(subject, masks, FISHER, pattern_of("unstructured"), batches)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    model.eval()
    name, matrix = next(iter(subject.matrices.items()))
    expected = FISHER.damping * torch.eye(16)
    for numbers in batches:
        model.zero_grad()
        subject.loss(numbers).backward()
        first = (matrix.weight.grad * masks[name]).flatten()[:16]
        expected = expected + torch.outer(first, first) / len(batches)
    torch.testing.assert_close(found[name][0], expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(("pattern", "sparsity"), [("unstructured", 0.75), ("4x1", 0.75), ("1:4", 0.75)])
def test_the_surgeon_hurts_less_than_magnitude(tmp_path: Path, pattern: str, sparsity: float) -> None:
    one, model = trained(tmp_path)
    subject = patient(one, model)
    every = range(20)  # all there is; the rest are copies
    dense = subject.loss(every).item()
    before = {name: matrix.weight.detach().clone() for name, matrix in subject.matrices.items()}
    prune.apply_masks(
        subject.matrices, prune.magnitude_masks(subject.matrices, sparsity, pattern=pattern, scope="global")
    )
    magnitude = subject.loss(every).item()
    rises = []
    for recomputations in (1, 4):
        for name, matrix in subject.matrices.items():
            matrix.weight.data.copy_(before[name])
        fisher = Fisher(gradients=32, batch_size=4, block=16, damping=1e-10, recomputations=recomputations)
        settings = Prune(sparsity, TRAINING, criterion="obert", scope="global", pattern=pattern, fisher=fisher)
        masks = surgeon.operate(subject, {}, sparsity, settings, (0,))
        assert prune.mask_sparsity(masks) == pytest.approx(sparsity, abs=1e-3)
        assert all(not matrix.weight[~masks[name]].any() for name, matrix in subject.matrices.items())
        rises.append(subject.loss(every).item() - dense)
    # Found: 0.33, 0.49 and 0.07 of what magnitude costs in one cut, 0.08, 0.002 and 0.003 in four.
    assert rises[0] < 0.75 * (magnitude - dense)
    assert rises[1] < 0.3 * (magnitude - dense)


def test_parts_build_on_each_other(tmp_path: Path) -> None:
    one, model = trained(tmp_path)
    subject = patient(one, model)
    settings = Prune(0.6, TRAINING, criterion="obert", fisher=Fisher(4, 4, 16, 1e-5, recomputations=3))
    first = surgeon.operate(subject, {}, 0.3, settings, (0,))
    second = surgeon.operate(subject, first, 0.6, settings, (1,))
    assert prune.mask_sparsity(second) == pytest.approx(0.6, abs=1e-3)
    assert not any((second[name] & ~first[name]).any() for name in first)


def test_a_stop_is_not_kept_waiting_for_the_matrices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compression.train.SAVE_SECONDS", 0.0)
    monkeypatch.setattr("compression.train.SAVE_COST", 0.0)
    one = prepared(tmp_path, "text-classification")
    settings = Prune(0.8, TRAINING, criterion="obert", end=0.5, update_every=20, fisher=FISHER)

    def trained_on(folder: Path) -> list[Tensor]:
        folder.mkdir(exist_ok=True)
        torch.manual_seed(0)  # the head starts at random
        model = load_model(one.recipe.checkpoint, one.recipe.task)
        matrices = encoder_matrices(model)
        task = one.recipe.task.name
        train(model, Stage("prune", task, TRAINING, 0, one.train_windows, matrices, {}, schedule=settings), folder)
        return [parameter.detach().clone() for parameter in model.parameters()]

    added, add = [0], fisher.add_gradient
    last = 10 * 12  # the second batch of eight at the second cut, its twelfth matrix

    def killed(*given: Any) -> None:
        added[0] += 1
        if added[0] == last:
            os.kill(os.getpid(), signal.SIGTERM)
        add(*given)

    with monkeypatch.context() as patch, pytest.raises(InterruptedTrainingError) as error:
        patch.setattr(fisher, "add_gradient", killed)
        trained_on(tmp_path / "stopped")
    assert "prune: stopped while its Fisher matrices were measured; what was saved before is kept" in str(error.value)
    assert error.value.number == signal.SIGTERM and added[0] == last
    assert all(map(torch.equal, trained_on(tmp_path / "stopped"), trained_on(tmp_path / "whole")))


def test_a_run_with_fewer_layers_and_blocks_ends_in_an_artifact(tmp_path: Path) -> None:
    base = tiny.checkpoint(tmp_path / "base", layers=3, hidden=64)
    text = tiny.recipe("text-classification", base, tmp_path, epochs=12)
    timing = "end = 0.5\nupdate_every = 2\n"
    assert timing in text
    how = 'criterion = "obert"\nscope = "global"\npattern = "4x1"\ninitial = 0.5\nat_epochs = [1, 3]\n'
    how += "keep_layers = [0, 2]\nfisher = {gradients = 8, batch_size = 4, block = 16, damping = 1e-6}\n"
    (tmp_path / "tiny.toml").write_text(text.replace(timing, how))
    options = ["--data", str(tmp_path), "--run-folder", str(tmp_path / "run"), "--threads", "1"]
    result = CliRunner().invoke(app, ["run", str(tmp_path / "tiny.toml"), *options])
    assert result.exit_code == 0, result.output
    # Named kernels, for the reason in test_patterns.py.
    loaded = engine.load(tmp_path / "run" / "artifact", threads=1, isa=engine.supported_isas()[-1])
    assert loaded.manifest.architecture.layers == 2
    assert loaded.manifest.raw["sparsity"]["overall"] >= 0.8
    assert loaded.manifest.quality["quantized"] >= 0.9, "three layers taught two"
    assert "blocks_4x1" in loaded.formats and "survivors" not in loaded.formats


def write_result(folder: Path) -> None:
    """Measure and cut in this process, alone or one of several."""
    one, model = untrained(folder)
    subject = patient(one, model)
    batches = surgeon.sample_batches(subject.lengths, FISHER, (7,))
    fishers = surgeon.measure(subject, {}, FISHER, pattern_of("1x4"), batches)
    settings = Prune(0.5, TRAINING, criterion="obert", scope="global", pattern="1x4", fisher=FISHER)
    masks = surgeon.operate(subject, {}, 0.5, settings, (7, 1))
    weights = {name: matrix.weight.detach() for name, matrix in subject.matrices.items()}
    torch.save({"fishers": fishers, "masks": masks, "weights": weights}, folder / "result.pt")


PROCESS = """
import sys
from pathlib import Path
from tests.compression.test_surgeon import write_result
write_result(Path(sys.argv[1]))
"""


def test_two_processes_share_the_gradients_and_agree(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    children = []
    for rank in ("0", "1"):
        (tmp_path / rank).mkdir()
        group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = os.environ | group | {"OMP_NUM_THREADS": "1"}
        children.append(subprocess.Popen([sys.executable, "-c", PROCESS, str(tmp_path / rank)], env=environment))
    write_result(tmp_path)
    assert [child.wait() for child in children] == [0, 0]
    first, second, alone = (torch.load(tmp_path / name / "result.pt") for name in ("0", "1", "."))
    for kind in ("fishers", "masks", "weights"):
        assert all(torch.equal(first[kind][name], second[kind][name]) for name in first[kind])
    for name, found in first["fishers"].items():  # two sums of four instead of one of eight: a few roundings
        torch.testing.assert_close(found, alone["fishers"][name], rtol=1e-4, atol=1e-10)
