"""`sparselane-compress grow` from a folder to a folder that everything else can use."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from typer.testing import CliRunner, Result

import engine
from compression import grow_checkpoint as module
from compression.checkpoint import CheckpointError, encoder_matrices, load_finetuned, load_model
from compression.cli import app
from compression.recipe import Task
from compression.shapes import SHAPES, Shape
from tests.compression import tiny

SENTIMENT = Task("text-classification", labels=("negative", "positive"), window=32, stride=8)


@pytest.fixture(autouse=True)
def _small_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published shapes take a minute each; these have the same proportions to tiny's checkpoints."""
    monkeypatch.setitem(SHAPES, "bert-base", Shape("bert", 4, 64, 4, 128))
    monkeypatch.setitem(SHAPES, "bert-large", Shape("bert", 8, 80, 5, 160))
    monkeypatch.setitem(SHAPES, "distilbert", Shape("distilbert", 2, 64, 4, 128))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A classifier as a run leaves it."""
    base = tiny.checkpoint(tmp_path / "base")
    model = load_model(str(base), SENTIMENT)
    model.save_pretrained(tmp_path / "small")
    tiny.tokenizer().save(str(tmp_path / "small" / "tokenizer.json"))
    return tmp_path / "small"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments), "--threads", "1"])


@pytest.mark.parametrize("shape", ["bert-base", "bert-large", "distilbert"])
def test_a_grown_checkpoint_is_an_ordinary_one_with_a_card(small: Path, tmp_path: Path, shape: str) -> None:
    out = tmp_path / "deep" / shape
    result = call("grow", small, out, "--to", shape)
    assert result.exit_code == 0, result.output
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert model.config.hidden_size == SHAPES[shape].hidden
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert load_finetuned(str(out), "text-classification")[1] == ("negative", "positive")
    encoded = AutoTokenizer.from_pretrained(out)("the film was superb", return_tensors="pt")
    assert model(**encoded).logits.shape == (1, 2)
    card = (out / "README.md").read_text()
    assert f"Grown by sparselane from `{small}`: bert, 2 x 32" in card
    exact = "float rounding" in result.output
    assert exact == (shape == "bert-base") == ("float rounding" in card)
    assert [path.name for path in out.parent.iterdir()] == [shape], "nothing half-written is left"


def test_it_exports_to_an_artifact_of_the_large_shape(small: Path, tmp_path: Path) -> None:
    assert call("grow", small, tmp_path / "large", "--to", "bert-base").exit_code == 0
    options = ["--task", "text-classification", "--out", tmp_path / "artifact", "--window", 32, "--stride", 8]
    result = call("export", tmp_path / "large", *options)
    assert result.exit_code == 0, result.output
    architecture = engine.read_manifest(tmp_path / "artifact").architecture
    assert (architecture.layers, architecture.hidden) == (4, 64)


def test_an_encoder_without_a_head_grows_too(tmp_path: Path) -> None:
    base = tiny.checkpoint(tmp_path / "base")
    result = call("grow", base, tmp_path / "large", "--to", "distilbert")
    assert result.exit_code == 0, result.output
    assert "DistilBertModel" in (tmp_path / "large" / "README.md").read_text()
    load_model(str(tmp_path / "large"), SENTIMENT)


def test_an_encoder_under_unknown_names_does_not_grow_from_noise(tmp_path: Path) -> None:
    base = tiny.checkpoint(tmp_path / "base")
    state = {f"mine.{name}": tensor for name, tensor in AutoModel.from_pretrained(base).state_dict().items()}
    (base / "model.safetensors").unlink()
    torch.save(state, base / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"lacks \d+ weights of the encoder"):
        module.grow_checkpoint(str(base), "distilbert", tmp_path / "large", seed=1)


def test_mistakes_are_one_line_and_leave_nothing(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "large"
    for arguments, message in (
        (
            (small, out, "--to", "bert-huge"),
            "shape 'bert-huge' is unknown; known are distilbert",
        ),
        ((small, small, "--to", "bert-base"), "exists already"),
        ((tmp_path / "nothing", out, "--to", "bert-base"), "cannot be loaded"),
        ((tiny.checkpoint(tmp_path / "d", family="distilbert"), out, "--to", "bert-base"), "must be a bert"),
        ((tiny.checkpoint(tmp_path / "w", hidden=96), out, "--to", "bert-base"), "hidden 64 < 96"),
    ):
        result = call("grow", *arguments)
        assert result.exit_code == 2 and message in result.output, result.output
        assert len(result.output.strip().splitlines()) == 1
    assert not out.exists()


def test_a_model_that_grew_wrong_is_not_kept(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It really grew wrong: one matrix's rows are turned round."""

    def careless(*arguments: Any, **options: Any) -> PreTrainedModel:
        large = real(*arguments, **options)
        matrix = encoder_matrices(large)["encoder.2.ffn_out"]
        assert matrix.weight.any(), "an idle layer would hide it"
        matrix.weight.data = matrix.weight.data.flip(0)
        return large

    real = module.grow
    monkeypatch.setattr(module, "grow", careless)
    result = call("grow", small, tmp_path / "large", "--to", "bert-base")
    assert result.exit_code == 2 and "this is an error in sparselane" in result.output, result.output
    assert {path.name for path in tmp_path.iterdir()} == {"base", "small"}, "nothing is left"
