"""What a checkpoint says of itself is kept: its tokenizer as it is, all of its encoder's weights, under any names."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.normalizers import BertNormalizer
from transformers import AutoConfig, AutoModel, AutoTokenizer

from compression.checkpoint import CheckpointError, load_model, load_tokenizer, save_tokenizer
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
