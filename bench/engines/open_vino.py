"""OpenVINO, float32 or int8 weights and activations (which one is in the file)."""

from pathlib import Path
from typing import Any

from bench.batch import Batch, Floats, Prepare, Prepared


def describe() -> dict[str, str]:
    """Name the version."""
    import openvino

    return {"openvino": openvino.__version__}


def load(path: Path, variant: str, threads: int) -> Prepare:
    """Read an ONNX or OpenVINO file; it is compiled for the exact shape of each batch, untimed."""
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    if variant == "fp32":  # on CPUs with bfloat16 the default would silently halve the precision of what is called that
        settings["INFERENCE_PRECISION_HINT"] = "f32"

    def prepare(batch: Batch) -> Prepared:
        ids, mask = batch.padded()
        model = core.read_model(path / "model.xml" if path.is_dir() else path)
        model.reshape({port: list(ids.shape) for port in model.inputs})
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        inputs = {"input_ids": ids, "attention_mask": mask}

        def logits(result: Any) -> Floats:
            return batch.without_padding(result[0])

        return Prepared(lambda: request.infer(inputs), logits)

    return prepare
