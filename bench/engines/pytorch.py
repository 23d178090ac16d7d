"""PyTorch, eager, float32: what a user has before any conversion, and the reference for all logits."""

from pathlib import Path
from typing import Any

from bench.batch import Batch, Floats, Prepare, Prepared


def describe() -> dict[str, str]:
    """Name the versions."""
    import torch
    import transformers

    return {"torch": torch.__version__, "transformers": transformers.__version__}


def load(path: Path, variant: str, threads: int) -> Prepare:  # noqa: ARG001, there is one variant
    """Load a checkpoint. Its attention is torch's fused one, which transformers chooses on CPUs."""
    import torch
    from transformers import AutoModelForQuestionAnswering

    torch.set_num_threads(threads)
    model = AutoModelForQuestionAnswering.from_pretrained(path, dtype=torch.float32).train(False)

    def prepare(batch: Batch) -> Prepared:
        ids, mask = (torch.from_numpy(array) for array in batch.padded())
        # Without padding no mask is needed, and torch is faster without.
        inputs = {"input_ids": ids} | ({} if bool(mask.all()) else {"attention_mask": mask})

        @torch.inference_mode()
        def call() -> Any:
            return model(**inputs)

        def logits(output: Any) -> Floats:
            return batch.without_padding(torch.stack((output.start_logits, output.end_logits), -1).numpy())

        return Prepared(call, logits)

    return prepare
