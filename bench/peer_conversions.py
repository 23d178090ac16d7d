"""From a checkpoint to what the peers load, in their environment: `python -m bench.peer_conversions STEP FROM TO`."""

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.batch import random_batch

# What activation ranges are taken from: a few texts of the lengths that are measured. Random weights have no outliers
# that more texts would find.
CALIBRATION_LENGTHS = (8, 32, 128, 384)


def calibration() -> Iterator[dict[str, Any]]:
    """Give the inputs that ranges are taken from; other ids than those that are timed."""
    for length in CALIBRATION_LENGTHS:
        ids, mask = random_batch((length,), seed=2).padded()
        yield {"input_ids": ids, "attention_mask": mask}


def to_onnx(source: Path, target: Path) -> None:
    """Export float32 with torch's classic exporter, eager attention, batch and length left open."""
    import torch
    from transformers import AutoModelForQuestionAnswering

    model = AutoModelForQuestionAnswering.from_pretrained(source, dtype=torch.float32, attn_implementation="eager")

    class WithMask(torch.nn.Module):
        """Hands a ready mask to the model: the graph then has no operator that old engines do not know."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model.train(False)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden = (1.0 - attention_mask[:, None, None, :].to(torch.float32)) * -10000.0
            output = self.model(input_ids=input_ids, attention_mask=hidden)
            return torch.stack((output.start_logits, output.end_logits), -1)

    ids, mask = (torch.from_numpy(array) for array in random_batch((16, 9)).padded())
    names = ["input_ids", "attention_mask"]
    axes = {name: {0: "batch", 1: "tokens"} for name in (*names, "logits")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            WithMask(),
            (ids, mask),
            str(target),
            input_names=names,
            output_names=["logits"],
            dynamic_axes=axes,
            opset_version=14,
            dynamo=False,
        )


def to_onnx_int8(source: Path, target: Path) -> None:
    """Quantize for ONNX Runtime: int8 weights, activations at run time. Matrix products only."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, target, op_types_to_quantize=["MatMul"], weight_type=QuantType.QInt8)


def to_openvino_int8(source: Path, target: Path) -> None:
    """Quantize weights and activations with NNCF, as OpenVINO advises for transformers."""
    import nncf
    import openvino

    target.mkdir(exist_ok=True)
    model = nncf.quantize(
        openvino.Core().read_model(source),
        nncf.Dataset(list(calibration())),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(CALIBRATION_LENGTHS),
    )
    openvino.save_model(model, target / "model.xml", compress_to_fp16=False)


def to_ctranslate2(source: Path, target: Path) -> None:
    """Convert with CTranslate2's own converter, int8 weights; the output layer goes beside it as head.npz."""
    import numpy as np
    from ctranslate2.converters import TransformersConverter
    from transformers import AutoModelForQuestionAnswering

    TransformersConverter(str(source)).convert(str(target), quantization="int8")
    head = AutoModelForQuestionAnswering.from_pretrained(source).qa_outputs
    np.savez(target / "head.npz", weight=head.weight.detach().numpy(), bias=head.bias.detach().numpy())


def to_deepsparse_int8(source: Path, target: Path) -> None:
    """Rewrite the graph as DeepSparse wants it (see `bench.deepsparse_graph`)."""
    from bench.deepsparse_graph import quantize

    quantize(source, target, list(calibration()))


STEPS = {
    "onnx": to_onnx,
    "onnx-int8": to_onnx_int8,
    "openvino-int8": to_openvino_int8,
    "ctranslate2": to_ctranslate2,
    "deepsparse-int8": to_deepsparse_int8,
}


if __name__ == "__main__":
    step, source, target = sys.argv[1:]
    STEPS[step](Path(source), Path(target))
