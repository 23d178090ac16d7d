"""How a model becomes shallower: some encoder layers stay, in their order, the rest goes."""

from collections.abc import Sequence

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from compression.checkpoint import encoder_layers
from compression.recipe import RecipeError


def check_layers(keep: Sequence[int], config: PretrainedConfig) -> None:
    """Raise RecipeError where `keep` names a layer that the model does not have."""
    if keep and max(keep) >= config.num_hidden_layers:
        raise RecipeError(
            f"'prune.keep_layers' is {list(keep)}; the checkpoint's layers are 0 to {config.num_hidden_layers - 1}"
        )


def keep_layers(model: PreTrainedModel, keep: Sequence[int]) -> None:
    """Drop all encoder layers but those numbered in `keep`, in place; the rest of the model stays as it is.

    `save_pretrained` then writes an ordinary checkpoint with fewer layers. oBERT (arXiv 2203.07259) drops layers
    before it prunes; SparseML's public recipes (Neural Magic) keep 0, 2, 4, 6, 8, 11 or 0, 6, 11 of BERT-Base's twelve.
    Raises RecipeError as `check_layers` does.
    """
    check_layers(keep, model.config)
    layers = encoder_layers(model)
    kept = nn.ModuleList(layers[number] for number in keep)
    path = "encoder" if model.config.model_type == "bert" else "transformer"
    model.base_model.get_submodule(path).layer = kept
    # DistilBERT's configuration maps this name to its own, n_layers.
    model.config.num_hidden_layers = len(kept)
