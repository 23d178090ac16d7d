"""What a checkpoint says of itself is kept: its tokenizer as it is, all of its encoder's weights, under any names."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.normalizers import BertNormalizer
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from compression.checkpoint import CheckpointError, load_model, load_tokenizer, save_tokenizer
from compression.cli import app
from compression.language import load_language_model
from compression.recipe import LanguageTask, Task
from tests.compression import tiny

TASK = Task("token-classification", ("PER",), window=32, stride=8)


def cased() -> Tokenizer:
    """Capitals are words of their own, and are not made small."""
    made = tiny.tokenizer()
    made.normalizer = BertNormalizer(lowercase=False, strip_accents=False)
    made.add_tokens(["Anna", "PARIS"])
    return made


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_a_cased_tokenizer_stays_cased_for_us_and_for_transformers(tmp_path: Path, family: str) -> None:
    base, saved = tiny.checkpoint(tmp_path / "base", family=family), tmp_path / "saved"
    AutoConfig.from_pretrained(base).save_pretrained(saved)
    config = AutoConfig.from_pretrained(saved)
    config.vocab_size += 2
    config.save_pretrained(saved)
    made = cased()
    save_tokenizer(made, config, saved)
    expected = made.encode("Anna PARIS", add_special_tokens=False).ids
    assert made.decode(expected) == "Anna PARIS"
    assert load_tokenizer(str(saved)).encode("Anna PARIS", add_special_tokens=False).ids == expected
    theirs = AutoTokenizer.from_pretrained(saved)
    found = theirs("Anna PARIS")
    assert found["input_ids"] == [theirs.cls_token_id, *expected, theirs.sep_token_id]
    assert ("token_type_ids" in found) == (family == "bert")
    (saved / "tokenizer_config.json").unlink()  # as checkpoints were saved before
    assert load_tokenizer(str(saved)).encode("Anna PARIS", add_special_tokens=False).ids == expected


def renamed(base: Path, rename: str) -> Path:
    """The checkpoint with other names for its weights."""
    model = AutoModel.from_pretrained(base)
    state = {rename.format(name): tensor for name, tensor in model.state_dict().items()}
    (base / "model.safetensors").unlink()
    torch.save(state, base / "pytorch_model.bin")
    return base


def test_wrapped_names_are_read_in_training_too(tmp_path: Path) -> None:
    plain = tiny.checkpoint(tmp_path / "plain")
    wrapped = renamed(tiny.checkpoint(tmp_path / "wrapped"), "module.bert.{}")
    for load in (
        lambda path: load_model(path, TASK),
        lambda path: load_language_model(path, LanguageTask("masked-language-modelling", 32), new_heads=True),
    ):
        one, other = load(str(plain)), load(str(wrapped))
        for name, tensor in one.base_model.encoder.state_dict().items():
            assert torch.equal(tensor, other.base_model.encoder.state_dict()[name]), name


def test_wrapped_names_are_read_of_the_hub_too(tmp_path: Path) -> None:
    """From its cache, as it lies on the disk after a download."""
    snapshot = tmp_path / "hub" / "models--some--wrapped" / "snapshots" / "0123"
    renamed(tiny.checkpoint(snapshot), "module.bert.{}")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0123")
    program = (
        "from compression.checkpoint import load_model, load_tokenizer\n"
        "from compression.recipe import Task\n"
        "load_model('some/wrapped', Task('token-classification', ('PER',), window=32, stride=8))\n"
        "assert load_tokenizer('some/wrapped').get_vocab_size() > 9\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment = {name: value for name, value in environment.items() if name != "HF_HUB_CACHE"}
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr


def test_an_encoder_that_is_not_in_the_file_is_no_start(tmp_path: Path) -> None:
    unknown = renamed(tiny.checkpoint(tmp_path / "unknown"), "student_of_mine.{}")
    for load in (
        lambda: load_model(str(unknown), TASK),
        lambda: load_language_model(str(unknown), LanguageTask("masked-language-modelling", 32), new_heads=True),
    ):
        with pytest.raises(CheckpointError, match=r"lacks \d+ weights of the encoder, bert\..*other names"):
            load()


def test_a_head_and_a_pooler_may_be_missing(tmp_path: Path) -> None:
    base = tiny.checkpoint(tmp_path / "base")
    model = AutoModel.from_pretrained(base, add_pooling_layer=False)
    model.save_pretrained(base)
    assert "pooler" not in json.dumps(sorted(model.state_dict()))
    load_model(str(base), Task("text-classification", ("a", "b"), window=32, stride=8))


PAIRS = Task("text-classification", ("a", "b"), window=32, stride=8)


def finetuned(folder: Path, classes: int) -> Path:
    """A classifier of so many classes, whose bias no new head has."""
    base = tiny.checkpoint(folder)
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=classes)
    model.get_submodule("classifier").bias.data.fill_(7.0)
    model.save_pretrained(base)
    return base


def test_a_head_of_another_size_starts_anew_where_it_is_trained_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nli = finetuned(tmp_path / "nli", 3)
    for _ in range(2):
        model = load_model(str(nli), PAIRS)
    assert not model.get_submodule("classifier").bias.any() and model.get_submodule("classifier").weight.std() > 0.01
    pooler = AutoModel.from_pretrained(nli).get_submodule("pooler.dense").weight
    assert torch.equal(model.base_model.get_submodule("pooler.dense").weight, pooler)
    assert caplog.text.count("has a head of another size, classifier.bias [3], not [2]") == 1
    with pytest.raises(
        CheckpointError, match=r"weights of other sizes than asked for: classifier.bias \[3\], not \[2\]"
    ):
        load_model(str(nli), PAIRS, trains=False)
    config = json.loads((nli / "config.json").read_text())
    (nli / "config.json").write_text(json.dumps({**config, "intermediate_size": 128}))
    with pytest.raises(CheckpointError, match=r"weights of other sizes than asked for: bert\.encoder"):
        load_model(str(nli), PAIRS)


def cut(name: str, bytes_kept: int) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        if name == "pytorch_model.bin":
            torch.save(AutoModel.from_pretrained(folder).state_dict(), folder / name)
            (folder / "model.safetensors").unlink()
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:bytes_kept])

    return spoil


def pointer(folder: Path) -> None:
    """What git leaves where it does not fetch large files."""
    cut("pytorch_model.bin", 0)(folder)
    (folder / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\n")


SPOILED: dict[str, tuple[Callable[[Path], None], str]] = {
    "none": (lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors"),
    "half": (cut("model.safetensors", 20_000), "Error while deserializing header"),
    "header": (cut("model.safetensors", 4), "Error while deserializing header: header too small"),
    "half bin": (cut("pytorch_model.bin", 20_000), ""),
    "start of bin": (cut("pytorch_model.bin", 10), "PytorchStreamReader failed"),
    "empty bin": (cut("pytorch_model.bin", 0), "the file is cut short"),
    "pointer": (pointer, "Weights only load failed"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_weights_that_cannot_be_read_are_one_line_and_no_trace(tmp_path: Path, name: str) -> None:
    base = tiny.checkpoint(tmp_path / "base")
    spoil, message = SPOILED[name]
    spoil(base)
    (tmp_path / "r.toml").write_text(tiny.recipe("text-classification", base, tmp_path))
    result = CliRunner().invoke(app, ["check", str(tmp_path / "r.toml"), "--data", str(tmp_path)])
    assert result.exit_code == 2, result.exception
    (line,) = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert f"checkpoint '{base}' cannot be loaded: " in line and message in line
