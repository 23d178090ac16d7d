"""Which weights of a sparse checkpoint were pruned: its mask file says, or its exact zeros."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from compression import prune
from compression.checkpoint import CheckpointError, encoder_matrices, resolve

MASKS_FILE = "masks.safetensors"
# A dense checkpoint holds a trained 0.0 here and there; the sparsest pattern worth locking is 1:2.
FEWEST_ZEROS = 0.1


def save_masks(masks: prune.Masks, folder: Path) -> None:
    """Write masks beside a checkpoint, uint8 by matrix name; nothing where there are none."""
    if masks:
        save_file({name: mask.to(torch.uint8) for name, mask in masks.items()}, folder / MASKS_FILE)


def load_masks(folder: Path) -> prune.Masks:
    """Read the masks that a pruned checkpoint was saved with."""
    return {name: mask.bool() for name, mask in load_file(folder / MASKS_FILE).items()}


def find_pattern(checkpoint: str, model: PreTrainedModel) -> tuple[prune.Masks, str]:
    """Return the masks of the encoder matrices of a sparse checkpoint, and where they come from.

    A mask file beside the checkpoint is believed: a trained weight that happens to be 0.0 stays trainable. A
    checkpoint without one (as Intel and Neural Magic published theirs) has only its zeros to go by.

    Raises:
        CheckpointError: a mask file that does not fit the weights; hardly any zeros, so there is nothing to lock.
    """
    matrices = encoder_matrices(model)
    path = cached_file(resolve(checkpoint), MASKS_FILE, _raise_exceptions_for_missing_entries=False)
    if path is None:
        masks = {name: matrix.weight.detach() != 0 for name, matrix in matrices.items()}
        source = f"exact zeros ({checkpoint} has no {MASKS_FILE})"
    else:
        saved = load_masks(Path(path).parent)
        _check_masks(saved, model, path)
        # A language model's mask file may hold its pooler too, which transfer trains freely.
        masks = {name: saved[name] for name in matrices}
        source = MASKS_FILE
    share = sum(int((~mask).sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
    if share < FEWEST_ZEROS:
        raise CheckpointError(
            f"checkpoint {checkpoint!r}: only {100 * share:.1f} % of its encoder weights are pruned, by its {source}; "
            f"a pattern to lock needs {100 * FEWEST_ZEROS:.0f} %: use 'prune' for a dense checkpoint"
        )
    return masks, source


def _check_masks(masks: prune.Masks, model: PreTrainedModel, path: str) -> None:
    for name, matrix in encoder_matrices(model).items():
        mask = masks.get(name)
        if mask is None or mask.shape != matrix.weight.shape:
            found = "nothing" if mask is None else list(mask.shape)
            raise CheckpointError(f"{path}: {name} must be {list(matrix.weight.shape)}, found {found}")
        if matrix.weight[~mask].any():
            raise CheckpointError(f"{path}: {name} has weights where its mask prunes; the file is of another model")
