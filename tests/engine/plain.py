"""The engine's arithmetic once more in plain numpy: no tiles, no lanes, no kernels; tokens are rows.

Linear layers and the levels of attention are float32 in the order docs/artifact.md section 4 gives, everything else is
float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

import engine

# How close, in quantization levels, a value may lie to a tie before rounding errors could push it over. A float32
# chain of some hundred operations on values below 255 levels is off by far less than a thousandth of a level.
TIE = 2e-3


def symmetric(x: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Round float32 [tokens, features] to levels in [-limit, limit]; return them and the scales [tokens]."""
    step = np.abs(x).max(axis=1) * np.float32(1 / limit)
    scale = np.maximum(step, np.float32(2.0**-20))
    return np.clip(np.rint(x * (1 / scale)[:, None]), -limit, limit).astype(int), scale


def integer_attention(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Attention of one head in 8 bits, float32 [tokens, features]: what it gives, and how far rounding may carry it.

    Scores and powers are exact here. In the engine a power is off by 3e-6 of itself, and a score of size s by 4 s u,
    which the power turns into as much of itself again: a weight so near to a tie may be one level more or less.
    """
    (q, q_scale), (k, k_scale), (v, v_scale) = symmetric(query, 127), symmetric(key, 64), symmetric(value, 64)
    scales = q_scale.astype(float)[:, None] * k_scale.astype(float) / math.sqrt(query.shape[1])
    scores = (q @ k.T) * scales * math.log2(math.e) + np.log2(v_scale.astype(float))
    exact = 255 * np.exp2(scores - scores.max(axis=1, keepdims=True))
    weights = np.rint(exact)
    total = (exact / v_scale).sum(axis=1, keepdims=True)
    error = exact * (4e-6 + 8 * 2.0**-24 * np.abs(scores).max())
    near = np.abs(exact - np.floor(exact) - 0.5) < error
    context = weights @ v / total
    return context, (near.astype(float) @ np.abs(v)) / total + np.abs(context) * 2e-5 + 1e-6 * v_scale.max()


class Plain:
    """An artifact as a dictionary of arrays, dequantized nowhere; reads what compression/pack.py wrote."""

    def __init__(self, folder: Path) -> None:
        self.manifest = engine.read_manifest(folder)
        self.tensors = load_file(folder / "model.safetensors")
        self.ambiguous = np.zeros(0, bool)  # tokens of the last call that had a value close to a tie

    def weight(self, name: str) -> np.ndarray:
        """int8 [rows, columns], decoded bit by bit from the file's codes."""
        info = self.manifest.matrices[name]
        stream = iter(np.unpackbits(self.tensors[f"{name}.positions"], bitorder="little").tolist())
        values = self._values(name)
        weight = np.zeros((info.rows, info.columns), np.int8)
        for row, survivors in enumerate(self.tensors[f"{name}.row_survivors"]):
            column = -1
            for _ in range(survivors):
                quotient = 0
                while next(stream) == 0:
                    quotient += 1
                column += 1 + (quotient << info.rice) + sum(next(stream) << i for i in range(info.rice))
                weight[row, column] = next(values)
        assert not any(stream)
        return weight

    def _values(self, name: str) -> Iterator[int]:
        """The survivors' values: a code grows bit by bit until it is one of the matrix's."""
        lengths = self.tensors[f"{name}.value_lengths"].tolist()
        values, code, before = {}, 0, 0
        for length, value in sorted((lengths[v + 64 - (v > 0)], v) for v in range(-64, 65) if v):
            if length:
                code <<= length - before
                values[length, code] = value
                code, before = code + 1, length
        seen, length = 0, 0
        for bit in np.unpackbits(self.tensors[f"{name}.values"], bitorder="little").tolist():
            seen, length = seen << 1 | bit, length + 1
            if (length, seen) in values:
                yield values[length, seen]
                seen, length = 0, 0

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        """Multiply [tokens, columns] float32 by a matrix: quantize, exact integers, dequantize."""
        low, high = np.minimum(x.min(axis=1), 0), np.maximum(x.max(axis=1), 0)
        scale = (high - low) / np.float32(255)
        scale[scale < 2.0**-100] = 1
        inverse = 1 / scale
        zero = np.rint(-low * inverse).astype(np.int32)
        levels = x * inverse[:, None]
        close = np.abs(levels - np.floor(levels) - 0.5).min(axis=1) < TIE
        self.ambiguous |= close | (np.abs(np.mod(-low * inverse, 1) - 0.5) < TIE)
        quantized = np.clip(np.rint(levels).astype(np.int32) + zero[:, None], 0, 255)
        weight = self.weight(name).astype(np.int32)
        exact = quantized @ weight.T - zero[:, None] * weight.sum(axis=1)
        product = self.tensors[f"{name}.scale"] * scale[:, None] * exact.astype(np.float32)
        return product + self.tensors[f"{name}.bias"]

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        x = x.astype(float)
        deviation = np.sqrt(x.var(axis=1, keepdims=True) + self.manifest.architecture.layer_norm_eps)
        normal = (x - x.mean(axis=1, keepdims=True)) / deviation
        return (normal * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]).astype(np.float32)

    def embed(self, ids: np.ndarray, types: np.ndarray) -> np.ndarray:
        def rows(table: str, index: np.ndarray) -> np.ndarray:
            name = f"embeddings.{table}"
            return self.tensors[name][index] * self.tensors[f"{name}.scale"][index][:, None]

        total = self.product_rows(ids) if "embeddings.word.codes" in self.tensors else rows("word", ids)
        if self.manifest.architecture.types:
            total = total + rows("type", types)
        return self.norm(total + rows("position", np.arange(len(ids))), "embeddings.norm")

    def product_rows(self, ids: np.ndarray) -> np.ndarray:
        """Look every part of four columns up by itself."""
        codes, words, scale = (self.tensors[f"embeddings.word.{name}"] for name in ("codes", "codebooks", "scale"))
        found = np.zeros((len(ids), 4 * len(scale)), np.float32)
        for token, row in enumerate(ids):
            for part, code in enumerate(codes[row]):
                found[token, 4 * part : 4 * part + 4] = words[part, code] * scale[part]
        return found

    def attend(self, query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Attention of [heads, tokens, features], in the arithmetic that the manifest names."""
        if self.manifest.attention == "int8":
            mixed, slack = (np.stack(each) for each in zip(*map(integer_attention, query, key, value), strict=True))
            self.ambiguous |= (slack > 1e-4).any(axis=(0, 2))
            return mixed
        query, key, value = (array.astype(float) for array in (query, key, value))
        scores = query @ key.transpose(0, 2, 1) / math.sqrt(query.shape[-1])
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return (weights / weights.sum(axis=-1, keepdims=True)) @ value

    def layer(self, x: np.ndarray, index: int) -> np.ndarray:
        """Run one layer on one sequence, float32 [tokens, hidden]; `ambiguous` says where a tie was close."""
        a, name = self.manifest.architecture, f"encoder.{index}."
        self.ambiguous = np.zeros(len(x), bool)
        heads = [self.linear(x, name + m).reshape(len(x), a.heads, -1) for m in ("query", "key", "value")]
        self.ambiguous[:] = False  # this input was float32 already: no rounding came before it
        mixed = self.attend(*(h.transpose(1, 0, 2) for h in heads))
        context = mixed.transpose(1, 0, 2).reshape(len(x), a.hidden).astype(np.float32)
        x = self.norm(x + self.linear(context, name + "attention_output"), name + "attention_norm")
        wide = self.linear(x, name + "ffn_in").astype(float)
        if a.activation == "gelu":
            wide = 0.5 * wide * (1 + np.vectorize(math.erf)(wide / math.sqrt(2)))
        else:
            wide = np.maximum(wide, 0)
        return self.norm(x + self.linear(wide.astype(np.float32), name + "ffn_out"), name + "output_norm")

    def head(self, x: np.ndarray) -> np.ndarray:
        """Logits [tokens, labels], or [1, labels] for text classification, from the last layer's output."""

        def dense(x: np.ndarray, name: str) -> np.ndarray:
            return x @ self.tensors[f"head.{name}.weight"].T.astype(float) + self.tensors[f"head.{name}.bias"]

        activation = self.manifest.task.head_activation
        if activation is None:
            return dense(x.astype(float), "output")
        pooled = dense(x[:1].astype(float), "dense")
        return dense(np.tanh(pooled) if activation == "tanh" else np.maximum(pooled, 0), "output")
