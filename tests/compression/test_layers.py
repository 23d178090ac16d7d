from pathlib import Path

import pytest
import torch
from transformers import AutoModel, BertModel, DistilBertModel, PreTrainedModel

from compression.checkpoint import encoder_layers, load_model, load_tokenizer
from compression.layers import keep_layers
from compression.objective import collate
from compression.recipe import RecipeError, Task
from tests.compression import tiny
from tests.compression.test_export import windows


def by_hand(model: PreTrainedModel, ids: torch.Tensor, keep: list[int]) -> torch.Tensor:
    """Run embeddings and some layers one after another."""
    state = model.embeddings(ids)
    for number in keep:
        output = encoder_layers(model)[number](state)
        state = output[0] if isinstance(output, tuple) else output
    return state


@pytest.mark.parametrize(("family", "kind"), [("bert", BertModel), ("distilbert", DistilBertModel)])
@torch.no_grad()
def test_a_shallower_model_is_the_kept_layers_and_an_ordinary_checkpoint(
    tmp_path: Path, family: str, kind: type[PreTrainedModel]
) -> None:
    base = tiny.checkpoint(tmp_path / "base", family=family, layers=5)
    model = kind.from_pretrained(base).eval()
    ids = collate(windows(1), torch.device("cpu")).ids
    expected = by_hand(model, ids, [0, 2, 4])
    keep_layers(model, [0, 2, 4])
    torch.testing.assert_close(model(ids).last_hidden_state, expected)
    model.save_pretrained(tmp_path / "small")
    loaded = AutoModel.from_pretrained(tmp_path / "small").eval()
    assert loaded.config.num_hidden_layers == len(encoder_layers(loaded)) == 3
    torch.testing.assert_close(loaded(ids).last_hidden_state, expected)


def test_a_task_model_keeps_its_head(tmp_path: Path) -> None:
    base = str(tiny.checkpoint(tmp_path / "base", family="distilbert", layers=4))
    task = Task("text-classification", labels=("a", "b"), window=32, stride=8)
    model = load_model(base, task)
    head = model.get_submodule("classifier").weight.clone()
    keep_layers(model, [1, 3])
    model.save_pretrained(tmp_path / "small")
    load_tokenizer(base).save(str(tmp_path / "small" / "tokenizer.json"))
    again = load_model(str(tmp_path / "small"), task)
    assert torch.equal(again.get_submodule("classifier").weight, head)
    assert len(encoder_layers(again)) == 2


def test_a_layer_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    model = BertModel.from_pretrained(tiny.checkpoint(tmp_path / "base"))
    with pytest.raises(RecipeError, match=r"'prune.keep_layers' is \[0, 2\]; the checkpoint's layers are 0 to 1"):
        keep_layers(model, [0, 2])
