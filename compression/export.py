"""A torch model to an artifact: names, shapes and numbers of docs/artifact.md, quality and provenance beside them."""

import datetime
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

import engine
from compression import detect
from compression.card import model_card
from compression.checkpoint import CheckpointError, embedding_tables, encoder_layers, encoder_matrices
from compression.decode import Floats
from compression.encode import Window
from compression.evaluate import Predict
from compression.examples import tags_of
from compression.files import writing
from compression.pack import quantize_embedding, write_artifact
from compression.product import product_quantize
from compression.recipe import STORED, Task
from engine.artifact import EMBEDDINGS


@dataclass(frozen=True)
class Origin:
    """What an artifact says of itself besides its numbers; all of it is optional but the name."""

    name: str
    quality: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    golden: Sequence[Mapping[str, Any]] = ()


def export_model(
    model: PreTrainedModel,
    tokenizer_json: str,
    task: Task,
    outputs: Sequence[str],
    origin: Origin,
    folder: Path,
    *,
    attention: str = "int8",
    embeddings: str = "int8",
) -> None:
    """Write `model` as an artifact into `folder`; `outputs` names the rows of its head.

    `attention` is the arithmetic of its products, "int8" or "float32"; `embeddings` how words are stored, see
    `quantize_model`.

    Encoder matrices and embeddings are rounded to int8 as `compression.quantize` does in training; exact zeros are the
    pruned weights.

    Raises:
        CheckpointError: `folder` exists and is no artifact. TrainingError: the disk is full. ValueError and
        engine.ArtifactError as `write_artifact`.
    """
    model.train(False)
    manifest = {
        "name": origin.name,
        "architecture": _architecture(model),
        "task": {
            "name": task.name,
            "labels": list(outputs),
            "head_activation": _head_activation(model, task),
            "window": task.window,
            "stride": task.stride,
            "max_answer_tokens": task.max_answer_tokens if task.name == "question-answering" else None,
            "pairs": task.pairs,
            "multi_label": task.multi_label,
            "no_answer_threshold": task.no_answer_threshold if task.no_answer else None,
        },
        "sparsity": {"pattern": detect.overall_pattern(detect.find_patterns(encoder_matrices(model)))},
        "quality": _quality(origin.quality),
        "provenance": {**_empty_provenance(), **origin.provenance},
        "golden": list(origin.golden),
    }
    matrices = {name: (_array(matrix.weight), _array(matrix.bias)) for name, matrix in encoder_matrices(model).items()}
    tensors = _tensors(model, task, embeddings)
    check_target(folder)
    with writing(folder, temporary=False):
        write_artifact(
            folder,
            manifest=manifest,
            matrices=matrices,
            tensors=tensors,
            tokenizer_json=tokenizer_json,
            model_card=model_card,
            attention=attention,
            embeddings=EMBEDDINGS[STORED.index(embeddings)],
        )


def check_target(folder: Path) -> None:
    """Refuse to replace a folder that is no artifact. Raises CheckpointError."""
    if folder.exists() and not (folder / "manifest.json").is_file():
        raise CheckpointError(f"{folder} exists and is not an artifact: remove it, or write elsewhere")


def engine_predictor(model: engine.Model) -> Predict:
    """Predict with an exported artifact through the engine."""

    def predict(windows: Sequence[Window]) -> list[Floats]:
        lengths = np.array([len(window.ids) for window in windows], np.int32)
        ids = np.concatenate([window.ids for window in windows])
        types = np.concatenate([window.types for window in windows])
        logits = model.forward(ids, lengths, types if model.manifest.architecture.types else None)
        if model.manifest.task.name == "text-classification":
            return list(logits)
        return np.split(logits, np.cumsum(lengths)[:-1])

    return predict


def task_of(manifest: engine.Manifest) -> Task:
    """Return the task that an artifact was made for, with entity groups for labels where those are IOB2 tags.

    Raises:
        CheckpointError: token labels that are not O, then B- and I- of each group, which the judge needs.
    """
    task = manifest.task
    labels = tuple(task.labels)
    if task.name == "question-answering":
        labels = ()
    elif task.name == "token-classification":
        groups = tuple(label[2:] for label in labels if label.startswith("B-"))
        if tags_of(groups) != labels:
            raise CheckpointError(f"{manifest.name}: labels {labels} are not O, B-X, I-X, B-Y, I-Y, ... in this order")
        labels = groups
    return Task(
        task.name,
        labels,
        task.window,
        task.stride,
        task.max_answer_tokens or Task.max_answer_tokens,
        pairs=task.pairs,
        multi_label=task.multi_label,
        no_answer=task.no_answer_threshold is not None,
        no_answer_threshold=task.no_answer_threshold or 0.0,
    )


def _architecture(model: PreTrainedModel) -> dict[str, Any]:
    config = model.config
    bert = config.model_type == "bert"
    return {
        "family": config.model_type,
        "layers": len(encoder_layers(model)),
        "hidden": config.hidden_size,
        "heads": config.num_attention_heads,
        "ffn": config.intermediate_size if bert else config.hidden_dim,
        "vocabulary": config.vocab_size,
        "positions": config.max_position_embeddings,
        "types": config.type_vocab_size if bert else 0,
        "activation": config.hidden_act if bert else config.activation,
        # DistilBERT's code has this constant where BERT's has a setting.
        "layer_norm_eps": config.layer_norm_eps if bert else 1e-12,
    }


def _head_activation(model: PreTrainedModel, task: Task) -> str | None:
    if task.name != "text-classification":
        return None
    return "tanh" if model.config.model_type == "bert" else "relu"


def _tensors(model: PreTrainedModel, task: Task, embeddings: str) -> dict[str, NDArray[Any]]:
    bert = model.config.model_type == "bert"
    norms = {"embeddings.norm": model.base_model.get_submodule("embeddings.LayerNorm")}
    paths = ("attention.output.LayerNorm", "output.LayerNorm") if bert else ("sa_layer_norm", "output_layer_norm")
    for number, layer in enumerate(encoder_layers(model)):
        norms[f"encoder.{number}.attention_norm"] = layer.get_submodule(paths[0])
        norms[f"encoder.{number}.output_norm"] = layer.get_submodule(paths[1])
    tensors: dict[str, NDArray[Any]] = {}
    for name, module in {**norms, **_head(model, task)}.items():
        for part, tensor in module.named_parameters():
            tensors[f"{name}.{part}"] = _array(tensor)
    for name, table in embedding_tables(model).items():
        if (name, embeddings) == ("embeddings.word", "product"):
            tensors |= {f"{name}.{part}": array for part, array in product_quantize(_array(table.weight)).items()}
        else:
            tensors[name], tensors[f"{name}.scale"] = quantize_embedding(_array(table.weight))
    return tensors


def _head(model: PreTrainedModel, task: Task) -> dict[str, nn.Module]:
    if task.name == "question-answering":
        return {"head.output": model.get_submodule("qa_outputs")}
    if task.name == "token-classification":
        return {"head.output": model.get_submodule("classifier")}
    bert = model.config.model_type == "bert"
    dense = model.base_model.get_submodule("pooler.dense") if bert else model.get_submodule("pre_classifier")
    return {"head.dense": dense, "head.output": model.get_submodule("classifier")}


def _array(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().to("cpu", torch.float32).numpy()
    return array


def _quality(measured: Mapping[str, Any]) -> dict[str, Any]:
    names = ("dataset", "split", "examples", "metric", "dense", "sparse", "quantized", "scores")
    return {name: measured.get(name) for name in names}


def _empty_provenance() -> dict[str, Any]:
    packages = ("torch", "transformers", "accelerate", "tokenizers", "numpy", "sparselane")
    versions = {package: importlib.metadata.version(package) for package in packages}
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {
        "base_checkpoint": None,
        "recipe": None,
        "seeds": [],
        "versions": versions,
        "date": today,
        "data": [],
        "minutes": {},
    }
