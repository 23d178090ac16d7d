"""One temperature for all logits: found where it is known, written into an artifact's head, no answer changes."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import engine
from compression.cli import app
from compression.encode import IGNORED, Window
from compression.line import run_line
from compression.read_recipe import parse_recipe
from compression.recipe import Task
from compression.temperature import LOWEST, fit_temperature
from tests.compression import tiny

TEXT = Task("text-classification", ("a", "b", "c"))


def drawn(temperature: float, shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits [N, C], and targets [N] drawn with the probabilities that they give at a temperature."""
    random = np.random.default_rng(seed)
    logits = (4 * random.standard_normal(shape)).astype(np.float32)
    gumbel = random.gumbel(size=shape)
    return logits, (logits / temperature + gumbel).argmax(axis=-1).astype(np.int32)


def window(targets: np.ndarray) -> Window:
    nothing = np.empty(0, np.int32)
    return Window(0, nothing, nothing, targets, nothing)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.5])
def test_the_temperature_that_made_the_labels_is_found(temperature: float) -> None:
    logits, targets = drawn(temperature, (4000, 3))
    windows = [window(target[None]) for target in targets]
    found = fit_temperature(windows, list(logits), TEXT)
    assert found == pytest.approx(temperature, rel=0.1)
    assert fit_temperature(windows, list(logits / np.float32(found)), TEXT) == pytest.approx(1.0, abs=0.02), "done"


def test_questions_are_left_as_they_are() -> None:
    logits, targets = drawn(2.0, (100, 2, 9))  # start and end of 9 tokens
    windows = [window(target) for target in targets]
    assert fit_temperature(windows, [values.T for values in logits], Task("question-answering")) == 1.0


def test_words_outside_of_entities_count_only_where_they_are_taken_for_some() -> None:
    task = Task("token-classification", ("PER",))  # O, B-PER, I-PER
    logits, targets = drawn(2.0, (3000, 1, 3))
    easy = np.array([[9.0, 0.0, 0.0]] * 50, np.float32)
    values = [np.concatenate([row, easy]) for row in logits]
    windows = [window(np.array([target[0], *[0] * 49, IGNORED], np.int32)) for target in targets]
    without = fit_temperature([window(target) for target in targets], list(logits), task)
    assert fit_temperature(windows, values, task) == without


def test_labels_of_a_text_are_sigmoids() -> None:
    logits, targets = drawn(3.0, (3000, 2))
    margins = (logits[:, 1] - logits[:, 0])[:, None]
    task = Task("text-classification", ("x",), multi_label=True)
    windows = [window(target[None].astype(np.float32)) for target in targets]
    assert fit_temperature(windows, list(margins), task) == pytest.approx(3.0, rel=0.1)


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_an_artifact_is_calibrated_in_place_and_at_the_end_of_a_run(tmp_path: Path, task: str) -> None:
    text = tiny.recipe(task, tiny.checkpoint(tmp_path / "base"), tmp_path)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(text)
    run_line(recipe, tmp_path, tmp_path / "run", 1)
    artifact = tmp_path / "run" / "artifact"
    before = engine.read_manifest(artifact).raw
    first = before["provenance"]["temperature"]
    ids, lengths = np.array([2, 7, 8, 9, 3], np.int32), np.array([5], np.int32)
    types = np.zeros_like(ids)
    logits = engine.load(artifact, threads=1).forward(ids, lengths, types)
    examples = tmp_path / parse_recipe(text).data.validation  # type: ignore[union-attr]
    done = CliRunner().invoke(app, ["calibrate", str(artifact), str(examples), "--threads", "1"])
    assert done.exit_code == 0, done.output
    after = engine.read_manifest(artifact).raw
    second = after["provenance"]["temperature"] / first
    assert LOWEST <= second <= 1.02, "the run has fitted on the same examples; a tiny model may be right on all of them"
    again = engine.load(artifact, threads=1).forward(ids, lengths, types)
    assert np.allclose(again * second, logits, rtol=1e-4, atol=1e-6)
    assert np.array_equal(again.argmax(-1), logits.argmax(-1))
    same = ("task", "quality", "golden", "architecture", "size")
    assert {key: before[key] for key in same} == {key: after[key] for key in same}
