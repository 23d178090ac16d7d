"""Every checkpoint of a run loads by from_pretrained: under the installed transformers, and under the last 4.x.

The latter is in a folder of its own (tests/transformers4.py); without it that test is skipped.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from typer.testing import CliRunner

from compression.cli import app
from tests import transformers4
from tests.compression import tiny

STAGES = ("teacher", "pruned", "quantized-1", "quantized")
LANGUAGE_STAGES = ("teacher", "pruned")
TRANSFER_STAGES = ("teacher", "transferred", "quantized")
INPUTS = {"ids": [[2, 71, 72, 73, 3], [2, 80, 81, 3, 0]], "text": "the film was superb, clara!"}


def run(folder: Path, name: str, recipe: str) -> Path:
    (folder / f"{name}.toml").write_text(recipe)
    options = ["--data", str(folder), "--run-folder", str(folder / name), "--threads", "1"]
    result = CliRunner().invoke(app, ["run", str(folder / f"{name}.toml"), *options])
    assert result.exit_code == 0, result.output
    return folder / name


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Every checkpoint of a BERT's and of a DistilBERT's runs: on a task, of a language model, of its transfer."""
    made = []
    for family in ("bert", "distilbert"):
        folder = tmp_path_factory.mktemp(family)
        base = tiny.checkpoint(folder / "base", family=family)
        tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
        tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        tokenizer.save(str(base / "tokenizer.json"))
        task = run(folder, "task", tiny.recipe("text-classification", base, folder, epochs=0.5))
        text = tiny.language_recipe(base, folder, next_sentence=family == "bert", steps=6)
        language = run(folder, "language", text)
        text = tiny.transfer_recipe("text-classification", language / "pruned", base, folder, epochs=0.5)
        transfer = run(folder, "transfer", text)
        made += [task / stage for stage in STAGES]
        made += [language / stage for stage in LANGUAGE_STAGES]
        made += [transfer / stage for stage in TRANSFER_STAGES]
    return made


def load(folders: list[Path], *, old: bool) -> dict[str, Any]:
    script = Path(__file__).with_name("load_checkpoint.py")
    document: dict[str, Any] = transformers4.run(script, json.dumps(INPUTS), *map(str, folders), old=old)
    return document


@pytest.fixture(scope="module")
def installed(folders: list[Path]) -> dict[str, Any]:
    return load(folders, old=False)


def test_every_checkpoint_loads_whole(installed: dict[str, Any]) -> None:
    assert len(installed["results"]) == 2 * len(STAGES + LANGUAGE_STAGES + TRANSFER_STAGES)
    heads = {"BertForPreTraining", "DistilBertForMaskedLM"}
    for folder, result in installed["results"].items():
        of_language = Path(folder).parent.name == "language"
        assert (result["architecture"] in heads) == of_language
        assert result["architecture"].endswith("ForSequenceClassification") != of_language
        assert result["missing"] == result["unexpected"] == []
        assert result["tokens"][0] == 2 and result["tokens"][-1] == 3


@transformers4.needed
def test_every_checkpoint_means_the_same_to_transformers_4(folders: list[Path], installed: dict[str, Any]) -> None:
    old = load(folders, old=True)
    assert installed["version"].startswith("5.") and old["version"].startswith("4.")
    for folder, ours in installed["results"].items():
        theirs = old["results"][folder]
        assert theirs["missing"] == theirs["unexpected"] == []
        assert theirs["tokens"] == ours["tokens"]
        # The two versions may choose other attention kernels: sums in another order.
        assert torch.allclose(torch.tensor(ours["logits"]), torch.tensor(theirs["logits"]), atol=1e-5)
