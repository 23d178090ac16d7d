"""ONNX Runtime, float32 or dynamically quantized int8 (which one is in the file)."""

from pathlib import Path

from bench.batch import Batch, Prepare, Prepared


def describe() -> dict[str, str]:
    """Name the version."""
    import onnxruntime

    return {"onnxruntime": onnxruntime.__version__}


def load(path: Path, variant: str, threads: int) -> Prepare:  # noqa: ARG001, the file decides
    """Load an ONNX file with all graph optimizations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Threads spin within a call, which is fast, and stop when it returns, so that they disturb nobody's sample.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def prepare(batch: Batch) -> Prepared:
        ids, mask = batch.padded()
        inputs = {"input_ids": ids, "attention_mask": mask}
        return Prepared(lambda: session.run(None, inputs)[0], batch.without_padding)

    return prepare
