"""Writes an artifact (docs/artifact.md): quantizes, codes and checksums. numpy only, no torch."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

import engine
from compression.huffman import huffman_encode
from engine.artifact import EMBEDDINGS, FORMAT_VERSION, PART, QUANTIZATION

Int8s = npt.NDArray[np.int8]
Floats = npt.NDArray[np.float32]
Array = np.ndarray[Any, Any]
# float32 weight [out, in] and bias [out]; or int8 weight, scale [out] and bias.
Matrix = tuple[Array, Array] | tuple[Array, Array, Array]
# README.md as text, or a function that writes it from the finished manifest.
ModelCard = str | Callable[[Mapping[str, Any]], str]

WEIGHT_LIMIT = 64  # two products 255 * 64 still fit in int16
EMBEDDING_LIMIT = 127


def quantize_rows(weight: Floats, limit: int = WEIGHT_LIMIT) -> tuple[Int8s, Floats]:
    """Quantize float32 [rows, columns] symmetrically, a scale per row: int8 in [-limit, limit] and float32 [rows].

    scale = max |w| / limit in float32, 1 for a row of zeros; round half to even. Raises ValueError unless finite.
    """
    if weight.ndim != 2 or weight.dtype != np.float32:
        raise ValueError(f"the weight is {weight.dtype} {list(weight.shape)}, must be float32 with 2 dimensions")
    highest = np.abs(weight).max(axis=1, initial=0.0)
    if not np.isfinite(highest).all():
        raise ValueError("the weight holds a number that is not finite")
    scale = highest / np.float32(limit)
    scale[scale == 0] = 1.0
    levels = np.rint(weight / scale[:, None])
    return np.clip(levels, -limit, limit).astype(np.int8), scale


def quantize_embedding(table: Floats) -> tuple[Int8s, Floats]:
    """Quantize an embedding table as `quantize_rows` does, to [-127, 127]."""
    return quantize_rows(table, EMBEDDING_LIMIT)


def rice_encode(weight: Int8s) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint16], Int8s, int]:
    """Code the non-zero weights of int8 [rows, columns]: (positions, row_survivors, values, Rice parameter).

    The parameter is the one that gives the fewest bits. Golomb, "Run-length encodings", 1966; Rice, 1979.
    """
    rows, columns = np.nonzero(weight)
    gaps = np.diff(columns, prepend=-1) - 1
    first_in_row = np.diff(rows, prepend=-1) != 0
    gaps[first_in_row] = columns[first_in_row]
    survivors = np.bincount(rows, minlength=weight.shape[0]).astype(np.uint16)
    parameter = min(range(16), key=lambda k: int((gaps >> k).sum()) + (1 + k) * len(gaps))
    return _rice_bits(gaps, parameter), survivors, weight[rows, columns], parameter


def _rice_bits(gaps: npt.NDArray[np.int64], parameter: int) -> npt.NDArray[np.uint8]:
    """Write every gap as gap >> k zero bits, a one bit and the k low bits, lowest first."""
    quotients = gaps >> parameter
    ends = np.cumsum(quotients + 1 + parameter)
    bits = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    bits[ends - parameter - 1] = 1
    for i in range(parameter):
        bits[ends - parameter + i] = (gaps >> i) & 1
    return np.packbits(bits, bitorder="little")


def write_artifact(
    folder: str | Path,
    *,
    manifest: Mapping[str, Any],
    matrices: Mapping[str, Matrix],
    tensors: Mapping[str, Array],
    tokenizer_json: str,
    model_card: ModelCard,
    attention: str = "int8",
    embeddings: str = EMBEDDINGS[0],
) -> engine.Manifest:
    """Write the artifact's four files and return the manifest as the engine reads it.

    manifest: manifest.json without `format_version`, `quantization`, `matrices`, `size` and `files`, which are filled
    in here; of `sparsity` it may hold the `pattern`.
    matrices: "encoder.{l}.{m}" -> float32 weight and bias, or int8 weight, scale and bias.
    attention: the arithmetic of its products, "int8" or "float32". embeddings: how the word table is stored.
    tensors: all other tensors, by their names in the file. Nothing is left behind if anything fails.
    Raises FileExistsError if `folder` exists and is no artifact, ValueError for a bad matrix, engine.ArtifactError for
    a bad manifest or tensor.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / "manifest.json").is_file():
        raise FileExistsError(f"{folder} exists and is not an artifact: remove it, or write elsewhere")
    folder.parent.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "quantization": {**QUANTIZATION, "embeddings": embeddings, "attention": attention},
    }
    document |= copy.deepcopy(dict(manifest))
    packed, document["matrices"] = _pack_matrices(matrices)
    everything = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()} | packed
    document["sparsity"] = _sparsity(document["matrices"]) | document.get("sparsity", {})
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write_files(scratch, document, everything, tokenizer_json, model_card)
        checked = engine.load(scratch, threads=1).manifest
        scratch.chmod(0o755)  # mkdtemp's 0700 would shut out the server's user
        put_in_place(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return checked


def write_quality(folder: str | Path, quality: Mapping[str, Any], model_card: ModelCard) -> engine.Manifest:
    """Write an artifact's `quality` and model card anew, all else as it is; return the manifest as the engine reads it.

    The folder is replaced as a whole. Raises engine.ArtifactError for what is no artifact.
    """
    folder = Path(folder)
    return _write_again(folder, {**engine.read_manifest(folder).raw, "quality": dict(quality)}, model_card)


def divide_logits(folder: str | Path, temperature: float, provenance: Mapping[str, Any], card: ModelCard) -> None:
    """Divide an artifact's logits by `temperature`, in its head; all else stays as it is, with `provenance` added.

    The folder is replaced as a whole. Raises engine.ArtifactError for what is no artifact.
    """
    folder = Path(folder)
    document = engine.read_manifest(folder).raw
    tensors = load_file(folder / "model.safetensors")
    for name in ("head.output.weight", "head.output.bias"):
        tensors[name] = tensors[name] / np.float32(temperature)
    changed = {**document, "provenance": {**document["provenance"], **provenance}}
    _write_again(folder, changed, card, tensors)


def _write_again(
    folder: Path, document: dict[str, Any], model_card: ModelCard, tensors: dict[str, Array] | None = None
) -> engine.Manifest:
    """Replace an artifact by one with other words, and other tensors where some are given."""
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for name in ("model.safetensors", "tokenizer.json"):
            shutil.copyfile(folder / name, scratch / name)
            (scratch / name).chmod(0o644)
        if tensors is not None:
            save_file(tensors, scratch / "model.safetensors")
            document = {
                **document,
                "files": {**document["files"], "model.safetensors": _seal(scratch / "model.safetensors")},
            }
        _write_words(scratch, document, model_card)
        checked = engine.load(scratch, threads=1).manifest
        scratch.chmod(0o755)  # as in write_artifact
        put_in_place(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return checked


def _pack_matrices(matrices: Mapping[str, Matrix]) -> tuple[dict[str, Array], dict[str, Any]]:
    """Give the tensors and the manifest's entries of all matrices."""
    tensors: dict[str, Array] = {}
    entries: dict[str, Any] = {}
    for name, matrix in matrices.items():
        weight, scale, bias = matrix if len(matrix) == 3 else (*quantize_rows(matrix[0]), matrix[1])
        rows, columns = weight.shape
        if weight.dtype != np.int8 or scale.shape != (rows,) or bias.shape != (rows,):
            raise ValueError(
                f"{name}: weight {weight.dtype} {list(weight.shape)}, scale {list(scale.shape)} and bias "
                f"{list(bias.shape)} do not fit: must be int8 [rows, columns], [rows], [rows]"
            )
        positions, row_survivors, values, parameter = rice_encode(weight)
        lengths, stream = huffman_encode(values)
        parts = {"positions": positions, "row_survivors": row_survivors, "value_lengths": lengths, "values": stream}
        parts |= {"scale": scale.astype(np.float32), "bias": bias.astype(np.float32)}
        tensors |= {f"{name}.{part}": np.ascontiguousarray(tensor) for part, tensor in parts.items()}
        entries[name] = {"rows": rows, "columns": columns, "survivors": len(values), "rice": parameter}
    return tensors, entries


def _sparsity(entries: Mapping[str, Any]) -> dict[str, Any]:
    weights = sum(entry["rows"] * entry["columns"] for entry in entries.values())
    survivors = sum(entry["survivors"] for entry in entries.values())
    return {"overall": 1 - survivors / max(1, weights), "pattern": "unstructured"}


def _sizes(document: Mapping[str, Any], tensors: Mapping[str, Array], total: int) -> dict[str, Any]:
    """Count the bytes of docs/artifact.md, section 1; `total` is the size of tensors and tokenizer."""

    def stored(prefix: str) -> int:
        return sum(tensor.nbytes for name, tensor in tensors.items() if name.startswith(prefix))

    entries = document["matrices"]
    encoder = sum(stored(f"{name}.") for name in entries)
    weights = sum(entry["rows"] * entry["columns"] for entry in entries.values())
    biases = sum(entry["rows"] for entry in entries.values())
    survivors = sum(entry["survivors"] for entry in entries.values())
    encoder_dense = 4 * (weights + biases)
    tables = sum(
        tensor.size * (PART if name.endswith(".codes") else 1)
        for name, tensor in tensors.items()
        if name.startswith("embeddings.") and tensor.ndim == 2
    )
    other = sum(t.size for name, t in tensors.items() if t.dtype == np.float32 and not name.endswith(".scale"))
    dense = 4 * (weights + tables + other)
    return {
        "total_bytes": total,
        "encoder_bytes": encoder,
        "embedding_bytes": stored("embeddings."),
        "dense_fp32_bytes": dense,
        "encoder_dense_fp32_bytes": encoder_dense,
        "ratio_total": round(dense / max(1, total), 2),
        "ratio_encoder": round(encoder_dense / max(1, encoder), 2),
        "ratio_encoder_values": round(4 * weights / max(1, survivors), 2),
    }


def _write_files(
    folder: Path, document: dict[str, Any], tensors: dict[str, Array], tokenizer_json: str, card: ModelCard
) -> None:
    """Write the four files, the manifest last; it says the size and sha256 of the other three."""
    save_file(tensors, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    document["files"] = {name: _seal(folder / name) for name in ("model.safetensors", "tokenizer.json")}
    document["size"] = _sizes(document, tensors, sum(entry["bytes"] for entry in document["files"].values()))
    _write_words(folder, document, card)


def _write_words(folder: Path, document: dict[str, Any], card: ModelCard) -> None:
    """Write the model card and the manifest, which seals it."""
    (folder / "README.md").write_text(card if isinstance(card, str) else card(document), encoding="utf-8")
    document["files"] = {**document["files"], "README.md": _seal(folder / "README.md")}
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / "manifest.json").write_text(text, encoding="utf-8")


def _seal(path: Path) -> dict[str, Any]:
    path.chmod(0o644)  # the tensor library writes 0600, which would shut out the server's user
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": file.tell()}


def put_in_place(scratch: Path, folder: Path) -> None:
    """Rename the finished folder to its name; an artifact that stands there goes away only after."""
    if not folder.exists():
        scratch.rename(folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
    folder.rename(old / "artifact")
    scratch.rename(folder)
    shutil.rmtree(old)
