"""The engines that are compared: which module drives each, what it loads, where its packages are installed.

A module here is imported only in that engine's worker process. `bench.batch.EngineModule` says what it offers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

# Cosine between an engine's logits and torch's, below which no time is reported.
LEAST_COSINE_FLOAT, LEAST_COSINE_INT8 = 0.999, 0.99


@dataclass(frozen=True)
class Engine:
    """One way to run a model."""

    name: str
    module: str
    # Passed to the module's `load`.
    variant: str
    # The converted model it loads, a name in `bench.conversions`.
    form: str
    # Whose Python runs it, a name in `bench.environments`.
    environment: str
    least_cosine: float
    # Set before the process starts; the reason stands beside each.
    variables: Mapping[str, str] = field(default_factory=dict)


# Intel's OpenMP keeps its threads spinning for 200 ms after a loop, far into the next engine's sample. With 1 ms they
# still wait awake from one loop to the next within a call.
_SHORT_SPIN = {"KMP_BLOCKTIME": "1"}

ENGINES = {
    engine.name: engine
    for engine in (
        Engine("sparselane", "sparselane", "", "artifact", "main", LEAST_COSINE_INT8),
        Engine("torch-fp32", "pytorch", "", "checkpoint", "main", LEAST_COSINE_FLOAT, _SHORT_SPIN),
        Engine("onnxruntime-fp32", "onnx_runtime", "", "onnx", "peers", LEAST_COSINE_FLOAT),
        Engine("onnxruntime-int8", "onnx_runtime", "", "onnx-int8", "peers", LEAST_COSINE_INT8),
        Engine("openvino-fp32", "open_vino", "fp32", "onnx", "peers", LEAST_COSINE_FLOAT),
        Engine("openvino-int8", "open_vino", "int8", "openvino-int8", "peers", LEAST_COSINE_INT8),
        Engine("ctranslate2-int8", "c_translate", "int8", "ctranslate2", "peers", LEAST_COSINE_INT8, _SHORT_SPIN),
        # No usage report leaves the machine.
        *(
            Engine(name, "deep_sparse", "", form, "deepsparse", cosine, {"NM_DISABLE_ANALYTICS": "1"})
            for name, form, cosine in (
                ("deepsparse-int8", "deepsparse-int8", LEAST_COSINE_INT8),
                ("deepsparse-fp32", "onnx", LEAST_COSINE_FLOAT),
            )
        ),
    )
}
REFERENCE = "torch-fp32"
OURS = "sparselane"
