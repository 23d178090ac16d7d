"""Does the artifact compute what the model does: logits of the engine beside those of torch, on the same inputs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

import engine
from compression.batches import plan_evaluation
from compression.checkpoint import CheckpointError
from compression.decode import Floats
from compression.encode import Window
from compression.evaluate import Predict, torch_predictor
from compression.export import engine_predictor
from compression.quantize import quantize_model
from compression.recipe import STORED
from engine.artifact import EMBEDDINGS

# Engine and torch in the same int8 arithmetic differ where a float sum's last bit moves a value over a rounding edge:
# one step of 1/255 here and there, in attention too. MiniLM with an untrained head shows 0.05. An error in a weight, a
# name or an order gives differences as large as the logits.
MOST_IN_INT8 = 0.15
# Rounding a trained checkpoint to int8 without training costs some percent of the logits. Half is another model.
MOST_OF_ROUNDING = 0.5
# Of real examples so many windows are compared.
COMPARED_WINDOWS = 64
# Random inputs where there are no real ones: enough to see an error, seconds for a large model.
RANDOM_WINDOWS, LONGEST = 16, 128
FIRST_WORD = 1000  # ids below are special tokens and single letters in BERT's vocabularies


@dataclass(frozen=True)
class Difference:
    """Logits beside those expected: the largest difference, root mean squares of difference over expected, and the
    share of equal decisions (highest logit of an example, of a token, start and end of an answer)."""

    largest: float
    relative: float
    agreement: float


@dataclass(frozen=True)
class Verification:
    """The artifact beside torch in the same int8 arithmetic, and beside the checkpoint in float32."""

    inputs: int
    int8: Difference
    float32: Difference

    def as_dict(self) -> dict[str, Any]:
        """Return it as it stands in an artifact's provenance, rounded to 6 digits after the point."""
        document = asdict(self)
        for name in ("int8", "float32"):
            document[name] = {key: round(value, 6) for key, value in document[name].items()}
        return document


def random_windows(vocabulary: int, window: int, uses_types: bool, seed: int = 0) -> list[Window]:
    """Make inputs of random words in two segments, lengths from 3 tokens on."""
    random = np.random.default_rng(seed)
    lowest = min(FIRST_WORD, vocabulary // 2)
    made = []
    for number in range(RANDOM_WINDOWS):
        length = int(random.integers(3, min(window, LONGEST) + 1))
        ids = random.integers(lowest, vocabulary, length).astype(np.int32)
        types = (np.arange(length) > length // 2).astype(np.int32) * int(uses_types)
        made.append(Window(number, ids, types, np.zeros(1, np.int32), np.empty(0, np.int32)))
    return made


def verify(
    model: PreTrainedModel,
    artifact: Path,
    windows: Sequence[Window],
    *,
    threads: int | None = None,
    rounding: float = MOST_OF_ROUNDING,
) -> Verification:
    """Compare an artifact with the float model that it was made from; `model` computes in int8 afterwards.

    Raises:
        CheckpointError: the artifact does not compute what the model does, or int8 changes it by more than `rounding`.
    """
    loaded = engine.load(artifact, threads=threads)
    exact = predict_all(torch_predictor(model), windows)
    embeddings = STORED[EMBEDDINGS.index(loaded.manifest.embeddings)]
    quantize_model(model, attention=loaded.manifest.attention, embeddings=embeddings)
    rounded = predict_all(torch_predictor(model), windows)
    found = predict_all(engine_predictor(loaded), windows)
    # A decision is over tokens, over classes, or about each label by itself.
    task = loaded.manifest.task
    axis = None if task.multi_label else 0 if task.name == "question-answering" else -1
    result = Verification(len(windows), difference(rounded, found, axis), difference(exact, found, axis))
    if not result.int8.relative <= MOST_IN_INT8:
        raise CheckpointError(
            f"{artifact}: the engine's logits differ from torch's in int8 by {result.int8.relative:.3g} of their size "
            f"on {len(windows)} inputs, at most {MOST_IN_INT8} is rounding: this is an error in sparselane"
        )
    if not result.float32.relative <= rounding:
        raise CheckpointError(
            f"{artifact}: int8 changes the checkpoint's logits by {result.float32.relative:.3g} of their size on "
            f"{len(windows)} inputs (limit {rounding}): it needs quantization-aware training, see "
            "docs/compression.md"
        )
    return result


def predict_all(predict: Predict, windows: Sequence[Window], batch_size: int = 8) -> list[Floats]:
    """Predict every window, similar lengths together; the logits come in the windows' order."""
    logits: list[Floats] = [np.empty(0, np.float32)] * len(windows)
    for batch in plan_evaluation([len(window.ids) for window in windows], batch_size):
        for number, values in zip(batch, predict([windows[i] for i in batch]), strict=True):
            logits[number] = values
    return logits


def difference(expected: Sequence[Floats], found: Sequence[Floats], axis: int | None) -> Difference:
    """Compare logits, [C] or [T, C] an input; a decision is the highest along `axis`: 0 over tokens (question
    answering), -1 over classes; None: each label holds where its logit is above 0.

    Softmax does not see what all its logits share, so root mean squares are taken around the mean of each decision.
    """
    apart = np.concatenate([_centred(a - b, axis) for a, b in zip(expected, found, strict=True)])
    size = np.concatenate([_centred(a, axis) for a in expected])
    relative = np.sqrt(np.mean(apart**2) / max(float(np.mean(size**2)), 1e-24))
    same = [np.atleast_1d(_decided(a, axis) == _decided(b, axis)) for a, b in zip(expected, found, strict=True)]
    largest = max(float(np.abs(a - b).max()) for a, b in zip(expected, found, strict=True))
    return Difference(largest, float(relative), float(np.concatenate(same).mean()))


def _decided(logits: Floats, axis: int | None) -> Any:
    return logits > 0 if axis is None else logits.argmax(axis)


def _centred(logits: Floats, axis: int | None) -> Floats:
    centred: Floats = (logits if axis is None else logits - logits.mean(axis=axis, keepdims=True)).ravel()
    return centred
