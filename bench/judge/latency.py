"""How long does a call take beside the dense model: this artifact, the same shape dense in our engine, and in torch."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, Final

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

import engine
from bench.record import cpu_name
from compression.checkpoint import model_labels
from compression.export import Origin, export_model
from compression.recipe import Task
from compression.verify import random_windows, verify

TOKENS: Final = 128
ROUNDS: Final = 25
# A sample repeats a fast call until this much time has passed, as bench/model_level.py does.
LEAST_SECONDS: Final = 0.02
_CLASSES: Final[Mapping[str, Any]] = {
    "question-answering": AutoModelForQuestionAnswering,
    "text-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
}


def measure_latency(artifact: Path, manifest: engine.Manifest, task: Task) -> Iterator[dict[str, Any]]:
    """Time one sequence of `TOKENS` tokens (fewer where the model has fewer positions), one thread, in turn.

    The dense model has random weights: dense arithmetic takes the same time whatever they are. That its artifact
    computes what torch does is checked first. Raises CheckpointError where it does not.
    """
    with TemporaryDirectory() as scratch:
        model = _dense(manifest, task)
        dense = Path(scratch) / "dense"
        tokenizer = (artifact / "tokenizer.json").read_text(encoding="utf-8")
        export_model(model, tokenizer, task, model_labels(task), Origin("dense"), dense, attention=manifest.attention)
        windows = random_windows(manifest.architecture.vocabulary, task.window, manifest.architecture.types > 0)
        verify(copy.deepcopy(model), dense, windows, threads=1, rounding=math.inf)
        length = min(TOKENS, manifest.architecture.positions)
        ids = np.random.default_rng(0).integers(0, manifest.architecture.vocabulary, length).astype(np.int32)
        calls = {
            "artifact": _engine_call(artifact, ids),
            "dense int8, our engine": _engine_call(dense, ids),
            "dense float32, PyTorch": _torch_call(model, ids),
        }
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield from _rounds(calls, length)
        finally:
            torch.set_num_threads(threads)


def _rounds(calls: dict[str, Callable[[], object]], length: int) -> Iterator[dict[str, Any]]:
    for call in calls.values():
        call()
    for number in range(ROUNDS):
        for name, call in calls.items():
            seconds = f"{_sample(call):.3e}"
            yield {"round": number, "model": name, "tokens": length, "seconds": seconds, "cpu": cpu_name()}


def _sample(call: Callable[[], object]) -> float:
    call()  # the caches hold the other models' weights
    began, calls = perf_counter(), 0
    while (passed := perf_counter() - began) < LEAST_SECONDS:
        call()
        calls += 1
    return passed / calls


def _dense(manifest: engine.Manifest, task: Task) -> PreTrainedModel:
    """Make the artifact's architecture with random weights, and the attention that transformers chooses on CPUs."""
    a = manifest.architecture
    settings: dict[str, Any] = {"vocab_size": a.vocabulary, "max_position_embeddings": a.positions}
    if a.family == "distilbert":
        settings |= {"n_layers": a.layers, "dim": a.hidden, "n_heads": a.heads, "hidden_dim": a.ffn}
        settings |= {"activation": a.activation}
    else:
        settings |= {"num_hidden_layers": a.layers, "hidden_size": a.hidden, "num_attention_heads": a.heads}
        settings |= {"intermediate_size": a.ffn, "hidden_act": a.activation, "type_vocab_size": a.types}
        settings |= {"layer_norm_eps": a.layer_norm_eps}
    torch.manual_seed(0)
    config = AutoConfig.for_model(a.family, num_labels=len(model_labels(task)), **settings)
    model: PreTrainedModel = _CLASSES[task.name].from_config(config)
    model.train(False)
    return model


def _engine_call(artifact: Path, ids: np.ndarray[Any, Any]) -> Callable[[], object]:
    model, lengths = engine.load(artifact, threads=1), np.array([len(ids)], np.int32)
    return lambda: model.forward(ids, lengths)


def _torch_call(model: PreTrainedModel, ids: np.ndarray[Any, Any]) -> Callable[[], object]:
    inputs = torch.from_numpy(ids.astype(np.int64))[None]

    @torch.inference_mode()
    def call() -> object:
        return model(input_ids=inputs)

    return call
