"""Writes artifacts with random weights, of any size, family and task: numpy and tokenizers only, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

import engine
from compression.pack import quantize_embedding, write_artifact

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = [
    "the",
    "a",
    "is",
    "was",
    "in",
    "of",
    "and",
    "who",
    "what",
    "where",
    "when",
    "good",
    "bad",
    "film",
    "paris",
    "london",
    "john",
    "mary",
]
LABELS = {
    "question-answering": ("start", "end"),
    "text-classification": ("negative", "positive"),
    "token-classification": ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"),
}


def tokenizer() -> Tokenizer:
    """Make a small uncased WordPiece tokenizer that has tokens for every ASCII text."""
    characters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    tokens = [*SPECIAL, *characters, *(f"##{c}" for c in characters), *WORDS, "##s", "##ing", "##ed"]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    made = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = BertNormalizer(lowercase=True)
    made.pre_tokenizer = BertPreTokenizer()
    made.decoder = WordPieceDecoder()
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return made


def write_random_artifact(
    folder: str | Path,
    *,
    name: str = "random",
    family: str = "bert",
    task: str = "question-answering",
    labels: Sequence[str] | None = None,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    ffn: int = 128,
    sparsity: float = 0.9,
    block: tuple[int, int] = (1, 1),
    seed: int = 0,
    vocabulary: int | None = None,
    positions: int = 64,
    window: int | None = None,
    stride: int = 8,
    activation: str = "gelu",
    attention: str = "int8",
    embeddings: str = engine.artifact.EMBEDDINGS[0],
    golden: Sequence[dict[str, Any]] = (),
) -> engine.Manifest:
    """Write an artifact to `folder`; vocabulary None is the tokenizer's, else at least that large.

    block: rows and columns that are pruned together, from (0, 0) on.
    """
    rng = np.random.default_rng(seed)
    made = tokenizer()
    vocabulary = vocabulary or made.get_vocab_size()
    types = 2 if family == "bert" else 0
    labels = LABELS[task] if labels is None else labels
    classifies = task == "text-classification"
    architecture = {"family": family, "layers": layers, "hidden": hidden, "heads": heads, "ffn": ffn}
    architecture |= {"vocabulary": vocabulary, "positions": positions, "types": types}
    manifest = {
        "format_version": 1,
        "name": name,
        "architecture": {**architecture, "activation": activation, "layer_norm_eps": 1e-12},
        "task": {
            "name": task,
            "labels": list(labels),
            "head_activation": ("tanh" if family == "bert" else "relu") if classifies else None,
            "window": window or positions,
            "stride": stride,
            "max_answer_tokens": min(30, window or positions) if task == "question-answering" else None,
        },
        "quantization": {**engine.artifact.QUANTIZATION, "attention": attention, "embeddings": embeddings},
        "quality": {
            **{"dataset": "none", "split": "none", "examples": 0, "metric": "none"},
            **{"dense": None, "sparse": None, "quantized": None},
        },
        "provenance": {
            **{"base_checkpoint": "random", "recipe": "", "seeds": [seed], "versions": {}, "date": "2026-01-01"},
            **{"data": [], "minutes": {}},
        },
        "golden": list(golden),
    }
    tensors = _embeddings(rng, {"word": vocabulary, "position": positions} | ({"type": types} if types else {}), hidden)
    if embeddings == engine.artifact.EMBEDDINGS[1]:
        tensors |= _product(rng, tensors.pop("embeddings.word"))
    matrices = {}
    for layer in range(layers):
        for matrix in engine.artifact.MATRICES:
            rows = ffn if matrix == "ffn_in" else hidden
            columns = ffn if matrix == "ffn_out" else hidden
            matrices[f"encoder.{layer}.{matrix}"] = _sparse(rng, rows, columns, sparsity, block), _normal(rng, rows)
        for norm in ("attention_norm", "output_norm"):
            tensors |= _norm(rng, f"encoder.{layer}.{norm}", hidden)
    for head, rows in [*([("dense", hidden)] if classifies else []), ("output", len(labels))]:
        tensors[f"head.{head}.weight"] = _normal(rng, rows, hidden) * np.float32(hidden**-0.5 * 20)
        tensors[f"head.{head}.bias"] = _normal(rng, rows)
    return write_artifact(
        folder,
        manifest=manifest,
        matrices=matrices,
        tensors=tensors,
        tokenizer_json=made.to_str(pretty=True),
        model_card=f"# {name}\n\nRandom weights, for tests.\n",
    )


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.standard_normal(shape) * 0.05).astype(np.float32)


def _norm(rng: np.random.Generator, name: str, hidden: int) -> dict[str, np.ndarray]:
    return {f"{name}.weight": 1 + _normal(rng, hidden), f"{name}.bias": _normal(rng, hidden)}


def _embeddings(rng: np.random.Generator, tables: dict[str, int], hidden: int) -> dict[str, np.ndarray]:
    tensors = _norm(rng, "embeddings.norm", hidden)
    for table, rows in tables.items():
        name = f"embeddings.{table}"
        tensors[name], tensors[f"{name}.scale"] = quantize_embedding(_normal(rng, rows, hidden))
    return tensors


def _product(rng: np.random.Generator, like: np.ndarray) -> dict[str, np.ndarray]:
    """Make random codes and code words of a word table as large as another."""
    rows, parts = len(like), like.shape[1] // engine.artifact.PART
    words = (parts, engine.artifact.CODE_WORDS, engine.artifact.PART)
    return {
        "embeddings.word.codes": rng.integers(0, engine.artifact.CODE_WORDS, (rows, parts), dtype=np.uint8),
        "embeddings.word.codebooks": rng.integers(-127, 128, words, dtype=np.int8),
        "embeddings.word.scale": rng.uniform(1e-4, 1e-3, parts).astype(np.float32),
    }


def _sparse(rng: np.random.Generator, rows: int, columns: int, sparsity: float, block: tuple[int, int]) -> np.ndarray:
    """Make weights that keep the size of what they multiply: variance 1 / survivors in a row."""
    weight = rng.standard_normal((rows, columns), dtype=np.float32)
    pruned = rng.random((-(-rows // block[0]), -(-columns // block[1])), dtype=np.float32) < sparsity
    weight[pruned.repeat(block[0], axis=0)[:rows].repeat(block[1], axis=1)[:, :columns]] = 0
    return weight / np.float32(max(1.0, columns * (1 - sparsity)) ** 0.5)
