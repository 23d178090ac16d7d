"""Product quantization: a table in parts of four columns, 256 code words each."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from typer.testing import CliRunner

import engine
from compression.checkpoint import load_model, load_tokenizer, model_labels
from compression.cli import app
from compression.export import Origin, export_model
from compression.product import product_decode, product_quantize
from compression.read_recipe import parse_recipe
from compression.recipe import RecipeError, Task
from compression.verify import random_windows, verify
from tests.compression import tiny


def table(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def test_codes_name_the_nearest_code_word_and_code_words_are_means() -> None:
    values = table(2000, 8)
    found = product_quantize(values)
    decoded = product_decode(**found)
    for part in range(2):
        columns = slice(4 * part, 4 * part + 4)
        words = found["codebooks"][part] * found["scale"][part]
        distances = ((values[:, None, columns] - words) ** 2).sum(axis=-1)
        chosen = distances[np.arange(len(values)), found["codes"][:, part]]
        assert (chosen <= distances.min(axis=1) + 0.05).all(), "rounded code words may change places by a little"
        for code in range(0, 256, 17):
            mean = values[found["codes"][:, part] == code, columns].mean(axis=0)
            np.testing.assert_allclose(mean, words[code], atol=0.15)
    assert ((decoded - values) ** 2).mean() < 0.12 * values.var()


def test_a_decoded_table_gives_itself_again() -> None:
    once = product_decode(**product_quantize(table(600, 12)))
    again = product_quantize(once)
    np.testing.assert_array_equal(product_decode(**again), once)
    assert product_quantize(once)["codes"].tobytes() == again["codes"].tobytes()


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 256), st.integers(1, 3), st.integers(-20, 20))
def test_few_rows_lose_only_the_rounding_of_the_code_words(rows: int, parts: int, exponent: int) -> None:
    values = table(rows, 4 * parts) * np.float32(2.0**exponent)
    found = product_quantize(values)
    half_steps = np.repeat(found["scale"], 4) * np.float32(0.501)
    assert (np.abs(product_decode(**found) - values) <= half_steps).all()


def test_the_same_table_gives_the_same_bytes() -> None:
    one, other = (product_quantize(table(700, 8)) for _ in range(2))
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_zeros_stay_zeros() -> None:
    found = product_quantize(np.zeros((5, 4), np.float32))
    assert not product_decode(**found).any() and (found["scale"] == 1).all()


def test_a_width_that_is_no_multiple_of_four_is_refused() -> None:
    with pytest.raises(ValueError, match="6 columns, product quantization needs a multiple of 4"):
        product_quantize(table(3, 6))


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_the_engine_computes_what_torch_does(tmp_path: Path, family: str) -> None:
    """More words than code words: they are means, and torch and the engine must agree on which."""
    task = Task("text-classification", labels=("no", "yes"), window=32, stride=8)
    base = str(tiny.checkpoint(tmp_path / "base", family=family))
    model = load_model(base, task)
    model.resize_token_embeddings(600)
    words = model.get_input_embeddings().weight
    words.data.copy_(torch.randn(words.shape, generator=torch.Generator().manual_seed(1)))
    before = words.detach().clone()
    tokenizer = load_tokenizer(base).to_str()
    export_model(model, tokenizer, task, model_labels(task), Origin("words"), tmp_path / "made", embeddings="product")
    manifest = engine.read_manifest(tmp_path / "made")
    assert manifest.embeddings == "product-4x256"
    assert manifest.raw["size"]["dense_fp32_bytes"] >= 4 * model.num_parameters() - 4 * 3 * 32
    windows = random_windows(600, task.window, family == "bert")
    found = verify(model, tmp_path / "made", windows, threads=1, rounding=math.inf)
    assert found.int8.relative < 1e-4 < found.float32.relative
    assert not torch.equal(words, before), "torch computes with the code words now"


def test_a_recipe_trains_on_what_is_left_of_the_words(tmp_path: Path) -> None:
    base = tiny.checkpoint(tmp_path / "base")
    text = tiny.recipe("text-classification", base, tmp_path, epochs=0.5)
    text = text.replace("[quantize.training]", '[quantize]\nembeddings = "product"\n\n[quantize.training]')
    with pytest.raises(RecipeError, match=r"quantize.embeddings' is 'product'.*freeze_embeddings = true"):
        parse_recipe(text)
    text = text.replace("[[quantize.rewinds]]", "[[quantize.rewinds]]\nfreeze_embeddings = true")
    (tmp_path / "tiny.toml").write_text(text)
    options = ["--data", str(tmp_path), "--run-folder", str(tmp_path / "run"), "--threads", "1"]
    result = CliRunner().invoke(app, ["run", str(tmp_path / "tiny.toml"), *options])
    assert result.exit_code == 0, result.output
    made = tmp_path / "run" / "artifact"
    assert engine.read_manifest(made).embeddings == "product-4x256"
    tensors = load_file(made / "model.safetensors")
    stored = {name: tensors[f"embeddings.word.{name}"] for name in ("codes", "codebooks", "scale")}
    kept = load_model(str(tmp_path / "run" / "quantized"), parse_recipe(text).task).get_input_embeddings().weight
    np.testing.assert_array_equal(product_decode(**stored), kept.detach().numpy())
