"""A checkpoint to a larger checkpoint: read, grown, compared with the small one, saved with a card."""

import math
from pathlib import Path

import torch
from transformers import AutoModel, PreTrainedModel

from compression.checkpoint import (
    CheckpointError,
    check_encoder,
    encoder_matrices,
    load_config,
    load_finetuned,
    load_tokenizer,
    load_weights,
    save_tokenizer,
)
from compression.files import remove, write_text, writing
from compression.grow import check_growth, grow, inexact, shape_of
from compression.prune import overall_sparsity
from compression.shapes import SHAPES
from compression.verify import random_windows

_TASKS = {
    "ForQuestionAnswering": "question-answering",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
}
# Float rounding over 24 layers shows 1e-6; a copy that is read twice, or not at all, shows 0.01 and more.
MOST_BY_ROUNDING = 1e-4


def grow_checkpoint(checkpoint: str, shape: str, out: Path, *, seed: int = 42) -> tuple[float, list[str]]:
    """Grow a checkpoint to one of SHAPES and save it as an ordinary checkpoint in `out`, whole or not at all.

    Returns the root mean square of what the outputs differ by over that of the outputs, on random inputs, and the
    reasons why it is more than rounding; none: the two compute the same.

    Raises:
        CheckpointError: an unknown shape, `out` exists, a model that cannot grow to it, or that grew wrong.
        TrainingError: the disk is full.
    """
    if shape not in SHAPES:
        raise CheckpointError(f"shape {shape!r} is unknown; known are {', '.join(SHAPES)}")
    if out.exists():
        raise CheckpointError(f"{out} exists already; choose another folder or remove it")
    check_growth(load_config(checkpoint), SHAPES[shape])  # before a download or a minute of work
    small = _load(checkpoint)
    small.train(False)
    tokenizer = load_tokenizer(checkpoint)
    large = grow(small, SHAPES[shape], seed=seed)
    difference, reasons = compare(small, large), inexact(small, SHAPES[shape])
    if not reasons and not difference <= MOST_BY_ROUNDING:
        raise CheckpointError(
            f"{checkpoint} grown to {shape} differs by {difference:.3g} of its outputs, at most {MOST_BY_ROUNDING} is "
            "rounding: this is an error in sparselane"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(out.name + ".tmp")
    remove(temporary)
    with writing(temporary):
        large.save_pretrained(temporary)
        save_tokenizer(tokenizer, large.config, temporary)
        write_text(temporary / "README.md", _card(checkpoint, small, large, seed, difference, reasons))
        temporary.rename(out)
    return difference, reasons


def _load(checkpoint: str) -> PreTrainedModel:
    """Load a fine-tuned model with its head, everything else (language models too) as an encoder without one."""
    config = load_config(checkpoint)
    name = (config.architectures or [""])[0]
    task = next((task for kind, task in _TASKS.items() if name.endswith(kind)), None)
    if task:
        return load_finetuned(checkpoint, task)[0]
    torch.manual_seed(0)  # a language model may lack the pooler
    model, missing = load_weights(AutoModel, checkpoint, {"config": config})
    check_encoder(model, [f"{model.base_model_prefix}.{key}" for key in missing], checkpoint)
    return model


@torch.no_grad()
def compare(small: PreTrainedModel, large: PreTrainedModel) -> float:
    """Return the root mean square of the outputs' difference over that of the small model's outputs.

    Outputs are the head's first, or the last hidden states of an encoder, of which the large one's first features are
    the small one's. The inputs are random words, in one text where the large model knows no second.
    """
    types = shape_of(large.config).family == "bert" and small.config.type_vocab_size > 1
    apart = size = 0.0
    for window in random_windows(small.config.vocab_size, small.config.max_position_embeddings, types):
        ids, segments = (torch.from_numpy(values)[None].long() for values in (window.ids, window.types))
        expected = small(input_ids=ids, token_type_ids=segments)[0]
        found = large(**({"input_ids": ids} | ({"token_type_ids": segments} if types else {})))[0]
        apart += float((found[..., : expected.shape[-1]] - expected).square().sum())
        size += float(expected.square().sum())
    return math.sqrt(apart / size)


def _card(
    checkpoint: str, small: PreTrainedModel, large: PreTrainedModel, seed: int, difference: float, reasons: list[str]
) -> str:
    zeros = 100 * overall_sparsity(encoder_matrices(large))
    return "\n".join(
        [
            "# A grown model",
            "",
            f"`{type(large).__name__}`: {shape_of(large.config)}.",
            f"Grown by sparselane from `{checkpoint}`: {shape_of(small.config)}; seed {seed}.",
            "It has the size of a published model, not its weights, and knows what the small model knows.",
            "",
            f"Outputs on random inputs differ from the small model's by {difference:.2g} of their size:",
            *(f"* {reason}." for reason in reasons or ["That is float rounding: the two compute the same"]),
            "",
            f"{zeros:.1f} % of its encoder weights are zero: of several copies",
            "each output reads one, and new layers add nothing yet.",
            "",
        ]
    )
