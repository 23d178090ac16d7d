from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel

from compression.checkpoint import CheckpointError, encoder_matrices, load_model
from compression.pattern import MASKS_FILE, find_pattern, load_masks, save_masks
from compression.recipe import Task
from tests.compression import tiny

TASK = Task("text-classification", labels=("a", "b"), window=32)


def zero_a_survivor(folder: Path) -> tuple[int, int]:
    """Set a trained weight of encoder.0.query to 0.0 in the checkpoint; return its place."""
    model = AutoModel.from_pretrained(folder)
    weight = encoder_matrices(model)["encoder.0.query"].weight
    row, column = weight.nonzero()[5].tolist()
    with torch.no_grad():
        weight[row, column] = 0.0
    model.save_pretrained(folder)
    return row, column


def test_a_mask_file_is_believed_so_a_trained_zero_stays_trainable(tmp_path: Path) -> None:
    base = tiny.sparse_checkpoint(tmp_path)
    place = zero_a_survivor(base)
    masks, source = find_pattern(str(base), load_model(str(base), TASK))
    assert source == MASKS_FILE
    assert masks["encoder.0.query"][place] and all(torch.equal(masks[k], v) for k, v in load_masks(base).items())


def test_without_a_mask_file_exact_zeros_are_the_pattern_and_that_is_said(tmp_path: Path) -> None:
    base = tiny.sparse_checkpoint(tmp_path, masks=False)
    place = zero_a_survivor(base)
    model = load_model(str(base), TASK)
    masks, source = find_pattern(str(base), model)
    assert "exact zeros" in source
    assert not masks["encoder.0.query"][place]
    assert all(torch.equal(masks[name], matrix.weight != 0) for name, matrix in encoder_matrices(model).items())


def test_a_dense_checkpoint_has_no_pattern_to_lock(tmp_path: Path) -> None:
    base = tiny.checkpoint(tmp_path)
    zero_a_survivor(base)
    with pytest.raises(CheckpointError, match=r"only 0\.0 % of its encoder weights are pruned, by its exact zeros"):
        find_pattern(str(base), load_model(str(base), TASK))


def test_a_mask_file_of_another_model_is_refused(tmp_path: Path) -> None:
    base = tiny.sparse_checkpoint(tmp_path)
    model = load_model(str(base), TASK)
    masks = load_masks(base)
    save_masks({name: ~mask for name, mask in masks.items()}, base)
    with pytest.raises(CheckpointError, match="has weights where its mask prunes"):
        find_pattern(str(base), model)
    save_file({"encoder.0.query": torch.ones(2, 2, dtype=torch.uint8)}, base / MASKS_FILE)
    with pytest.raises(CheckpointError, match=r"encoder.0.query must be \[32, 32\], found \[2, 2\]"):
        find_pattern(str(base), model)
