"""One temperature for all logits: found where it is known, written into an artifact's head, no answer changes."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import engine
from compression.checkpoint import load_model, model_labels
from compression.cli import app
from compression.encode import IGNORED, Window
from compression.export import Origin, export_model
from compression.line import run_line
from compression.read_recipe import parse_recipe
from compression.recipe import Recipe, Task
from compression.temperature import HIGHEST, fit_temperature
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


@pytest.fixture(scope="module", params=["text-classification", "token-classification"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a recipe, its data and its run."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "recipe.toml").write_text(tiny.recipe(request.param, tiny.checkpoint(folder / "base"), folder))
    run_line(folder / "recipe.toml", folder, folder / "run", 1)
    return folder


def logits(artifact: Path) -> np.ndarray:
    """What an artifact says of a few tokens."""
    ids, lengths = np.array([2, 7, 8, 9, 3], np.int32), np.array([5], np.int32)
    return engine.load(artifact, threads=1).forward(ids, lengths, np.zeros_like(ids))


def recipe_of(folder: Path) -> Recipe:
    recipe = parse_recipe((folder / "recipe.toml").read_text())
    assert isinstance(recipe, Recipe)
    return recipe


def test_a_run_divides_its_logits_by_the_temperature_that_it_says(finished: Path, tmp_path: Path) -> None:
    recipe, quantized = recipe_of(finished), finished / "run" / "quantized"
    model = load_model(str(quantized), recipe.task)
    tokenizer = (quantized / "tokenizer.json").read_text()
    stored = recipe.quantize.embeddings
    export_model(
        model,
        tokenizer,
        recipe.task,
        model_labels(recipe.task),
        Origin("x"),
        tmp_path / "as-trained",
        embeddings=stored,
    )
    artifact = finished / "run" / "artifact"
    temperature = engine.read_manifest(artifact).raw["provenance"]["temperature"]
    assert abs(np.log(temperature)) > 0.1, "else there is nothing to see"
    assert np.allclose(logits(artifact) * temperature, logits(tmp_path / "as-trained"), rtol=1e-4, atol=1e-6)


def flipped(source: Path, target: Path) -> Path:
    """Copy examples of two labels, about a third of them with the other label."""
    if source.read_text().startswith("sentence"):
        header, *rows = source.read_text().splitlines()
        lies = [row[:-1] + str(1 - int(row[-1])) if number % 3 == 0 else row for number, row in enumerate(rows)]
        target.write_text("\n".join([header, *lies]) + "\n")
    else:
        other = {"PER": "LOC", "LOC": "PER"}
        sentences = [
            re.sub("PER|LOC", lambda found: other[found[0]], sentence) if number % 3 == 0 else sentence
            for number, sentence in enumerate(source.read_text().split("\n\n"))
        ]
        target.write_text("\n\n".join(sentences))
    return target


def test_an_artifact_is_calibrated_in_place(finished: Path, tmp_path: Path) -> None:
    """On examples a third of which say otherwise: who is sure of all of them is told to be less so."""
    artifact = shutil.copytree(finished / "run" / "artifact", tmp_path / "artifact")
    examples = flipped(finished / recipe_of(finished).data.validation, tmp_path / "examples")
    before, said = engine.read_manifest(artifact).raw, logits(artifact)
    done = CliRunner().invoke(app, ["calibrate", str(artifact), str(examples), "--threads", "1"])
    assert done.exit_code == 0, done.output
    after, says = engine.read_manifest(artifact).raw, logits(artifact)
    fitted = after["provenance"]["temperature"] / before["provenance"]["temperature"]
    assert 1.2 < fitted <= HIGHEST
    assert f"logits are divided by {fitted:g}, as " in done.output
    assert np.allclose(says * fitted, said, rtol=1e-4, atol=1e-6)
    assert np.array_equal(says.argmax(-1), said.argmax(-1))
    same = ("task", "quality", "golden", "architecture", "size")
    assert {key: before[key] for key in same} == {key: after[key] for key in same}
