"""Whose tensor names a checkpoint file has: plain ones, or those that training wrappers leave behind."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

# Tensors that quantization-aware training adds (torch.ao, SparseML; names as in neuralmagic/sparseml#792): ranges and
# switches, no weights. The weights beside them are the float ones that were trained; we round them with our own scales.
_FAKE_QUANTIZATION = re.compile(
    r"(^|\.)(weight_fake_quant|activation_post_process|input_quant_stubs?|output_quant_stubs?|quant|dequant"
    r"|fake_quant_enabled|observer_enabled|input_scale|input_zero_point)(\.|$)"
)
# Integer weights of a converted model: the float ones are gone.
_CONVERTED = re.compile(r"(^|\.)(_packed_params|weight_scale|weight_packed)(\.|$)|\._packed_params\.")


class StateNamesError(ValueError):
    """A checkpoint file whose tensors are not the float weights of a model; the message says which they are."""


def clean_names(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors by their plain names, and the names of those that were left aside.

    `module.` (DataParallel in front, a quantization wrapper inside) goes; so do tensors of fake quantization.
    Raises StateNamesError for integer weights, and for two tensors that would get one name.
    """
    converted = [name for name in state if _CONVERTED.search(name)]
    if converted:
        raise StateNamesError(f"its weights are packed integers ({converted[0]}, ...); the float checkpoint is needed")
    plain: dict[str, Tensor] = {}
    aside: list[str] = []
    for name, tensor in state.items():
        if _FAKE_QUANTIZATION.search(name):
            aside.append(name)
            continue
        short = ".".join(part for part in name.split(".") if part != "module")
        if short in plain:
            raise StateNamesError(f"two of its tensors are called {short}")
        plain[short] = tensor
    return plain, aside


def read_state(folder: Path) -> dict[str, Tensor] | None:
    """Read model.safetensors or pytorch_model.bin (weights, no code) of a folder, also in shards; else None."""
    for name, load in (("model.safetensors", load_file), ("pytorch_model.bin", _load_bin)):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return load(folder / name)
        if index.is_file():
            files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            return {key: tensor for file in files for key, tensor in load(folder / file).items()}
    return None


def _load_bin(path: Path) -> dict[str, Tensor]:
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
