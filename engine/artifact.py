"""Reads and checks an artifact: files, manifest and tensors, as docs/artifact.md demands.

ArtifactError
├── MissingFileError            one of the four files is not there
├── ManifestSyntaxError         manifest.json is not UTF-8 JSON
├── UnknownVersionError         format_version is not one this engine reads
├── MissingFieldError           the manifest lacks a field
├── InvalidFieldError           a field has the wrong type or a value out of its limits
├── LabelCountError             the number of labels does not fit the task
├── ChecksumError               a file's sha256 or size is not the manifest's
├── CorruptTensorsError         model.safetensors cannot be parsed: truncated or damaged
├── MissingTensorError          the file lacks a tensor
├── UnexpectedTensorError       the file holds a tensor that the architecture has no use for
├── TensorDtypeError            a tensor has the wrong dtype
├── TensorShapeError            a tensor has the wrong shape
├── SurvivorCountError          row_survivors do not sum to the manifest's number of survivors
├── IndexRangeError             a survivor's column lies outside its matrix
├── PositionsTruncatedError     a position stream ends too early
├── PositionsTrailingError      a position stream goes on after the last survivor
├── ValueCodeError              the lengths of value codes make no code
├── ValuesTruncatedError        a value stream ends too early
├── ValuesTrailingError         a value stream goes on after the last survivor
├── ScaleError                  a scale is not finite, or not above zero
└── NotFiniteError              a bias, norm or head parameter is not finite
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError, safe_open

FORMAT_VERSION = 1
# JSON can spell half of a surrogate pair, which no answer could hold.
SURROGATES = re.compile("[\ud800-\udfff]")
# What a model may be called; it stands in paths of the service.
NAME = r"[a-z0-9][a-z0-9._-]{0,63}"
FAMILIES = ("bert", "distilbert")
TASKS = ("question-answering", "text-classification", "token-classification")
QUANTIZATION = {
    "weights": "int8-symmetric-per-row-64",
    "activations": "uint8-asymmetric-per-token-dynamic",
    "positions": "rice",
    "values": "huffman",
}
EMBEDDINGS = ("int8-symmetric-per-row-127", "product-4x256")  # of words; positions and types are always the first
# Columns of a part of a product-quantized table, and code words of each part.
PART, CODE_WORDS = 4, 256
VALUES = 128  # of a survivor: -64 to -1 and 1 to 64
ATTENTION = ("float32", "int8")  # arithmetic of its products; an artifact that does not say means the first
MATRICES = ("query", "key", "value", "attention_output", "ffn_in", "ffn_out")
CHECKED_FILES = ("model.safetensors", "tokenizer.json", "README.md")


class ArtifactError(ValueError):
    """The artifact cannot be used; the message says which file, what is wrong and what it should be."""


class MissingFileError(ArtifactError):
    """One of the four files is not there."""


class ManifestSyntaxError(ArtifactError):
    """manifest.json is not UTF-8 JSON."""


class UnknownVersionError(ArtifactError):
    """format_version is not one this engine reads."""


class MissingFieldError(ArtifactError):
    """The manifest lacks a field."""


class InvalidFieldError(ArtifactError):
    """A field of the manifest has the wrong type or a value out of its limits."""


class LabelCountError(ArtifactError):
    """The number of labels does not fit the task."""


class ChecksumError(ArtifactError):
    """A file's sha256 or size is not the manifest's."""


class CorruptTensorsError(ArtifactError):
    """model.safetensors cannot be parsed: truncated or damaged."""


class MissingTensorError(ArtifactError):
    """The file lacks a tensor that the architecture needs."""


class UnexpectedTensorError(ArtifactError):
    """The file holds a tensor that the architecture has no use for."""


class TensorDtypeError(ArtifactError):
    """A tensor has the wrong dtype."""


class TensorShapeError(ArtifactError):
    """A tensor has the wrong shape."""


class SurvivorCountError(ArtifactError):
    """row_survivors do not sum to the manifest's number of survivors."""


class IndexRangeError(ArtifactError):
    """A survivor's column lies outside its matrix."""


class PositionsTruncatedError(ArtifactError):
    """A position stream ends too early."""


class PositionsTrailingError(ArtifactError):
    """A position stream goes on after the last survivor."""


class ValueCodeError(ArtifactError):
    """The lengths of value codes make no code, or the stream holds what is none."""


class ValuesTruncatedError(ArtifactError):
    """A value stream ends too early."""


class ValuesTrailingError(ArtifactError):
    """A value stream goes on after the last survivor."""


class ScaleError(ArtifactError):
    """A scale is not finite, or not above zero."""


class NotFiniteError(ArtifactError):
    """A bias, norm or head parameter is not finite."""


@dataclass(frozen=True)
class Architecture:
    """The sizes of the encoder, as named in the manifest."""

    family: str
    layers: int
    hidden: int
    heads: int
    ffn: int
    vocabulary: int
    positions: int
    types: int
    activation: str
    layer_norm_eps: float

    def matrix_shape(self, matrix: str) -> tuple[int, int]:
        """Give (rows, columns) of one of `MATRICES`."""
        rows = self.ffn if matrix == "ffn_in" else self.hidden
        return rows, self.ffn if matrix == "ffn_out" else self.hidden


@dataclass(frozen=True)
class Task:
    """What the model answers; `window`, `stride` and `max_answer_tokens` are counted in tokens.

    `no_answer_threshold` None: every question is answered.
    """

    name: str
    labels: tuple[str, ...]
    head_activation: str | None
    window: int
    stride: int
    max_answer_tokens: int | None
    pairs: bool
    multi_label: bool
    no_answer_threshold: float | None


@dataclass(frozen=True)
class MatrixInfo:
    """One sparse matrix: its shape, how many weights are left, and the Rice parameter of their positions."""

    rows: int
    columns: int
    survivors: int
    rice: int


@dataclass(frozen=True)
class Manifest:
    """manifest.json, checked; the parts that nobody computes with stay plain JSON, `raw` is all of it."""

    name: str
    architecture: Architecture
    attention: str
    embeddings: str
    task: Task
    matrices: Mapping[str, MatrixInfo]
    sparsity: Mapping[str, Any]
    quality: Mapping[str, Any]
    size: Mapping[str, Any]
    provenance: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]
    golden: tuple[Mapping[str, Any], ...]
    raw: Mapping[str, Any]


class _Fields:
    """One JSON object of the manifest; reads its fields and names them in full when they are wrong."""

    def __init__(self, value: object, path: str) -> None:
        if not isinstance(value, dict):
            raise InvalidFieldError(f"manifest.json: {path or 'the document'} is {_shown(value)}, must be an object")
        self.value: dict[str, Any] = value
        self.path = path

    def wrong(self, name: str, must: str) -> InvalidFieldError:
        return InvalidFieldError(f"manifest.json: {self._full(name)} is {_shown(self.value[name])}, must be {must}")

    def get(self, name: str) -> Any:
        if name not in self.value:
            raise MissingFieldError(f"manifest.json: {self._full(name)} is missing")
        return self.value[name]

    def fields(self, name: str) -> _Fields:
        return _Fields(self.get(name), self._full(name))

    def integer(self, name: str, low: int, high: int) -> int:
        value = self.get(name)
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(name, f"an integer from {low} to {high}")
        return value

    def number(self, name: str, low: float, high: float) -> float:
        value = self.get(name)
        if type(value) not in (int, float) or not low <= value <= high:
            raise self.wrong(name, f"a number from {low} to {high}")
        return float(value)

    def flag(self, name: str) -> bool:
        """Read a field that artifacts from before it do not have: absent is false."""
        value = self.value.get(name, False)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def choice(self, name: str, choices: tuple[str | None, ...]) -> Any:
        value = self.get(name)
        if not isinstance(value, str | None) or value not in choices:
            raise self.wrong(name, "one of " + ", ".join("null" if c is None else c for c in choices))
        return value

    def text(self, name: str, pattern: str) -> str:
        value = self.get(name)
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise self.wrong(name, f"text like {pattern}")
        return value

    def _full(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name


def _shown(value: object) -> str:
    try:
        text = json.dumps(value)
    except RecursionError:  # json reads deeper than it writes
        text = f"a {type(value).__name__} nested too deeply"
    return text if len(text) <= 80 else text[:77] + "..."


def read_manifest(path: str | Path) -> Manifest:
    """Read and check `path`/manifest.json alone; the other files are checked when a model is loaded.

    Raises: MissingFileError, ManifestSyntaxError, UnknownVersionError, MissingFieldError, InvalidFieldError,
    LabelCountError.
    """
    file = Path(path) / "manifest.json"
    try:
        text = _read(file).decode("utf-8")
        document = json.loads(text, parse_constant=_no_constant, parse_float=_finite, parse_int=_whole)
    except (ValueError, RecursionError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ManifestSyntaxError(f"{file} is not UTF-8 JSON: {error}") from error
    return parse_manifest(document)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large for a number")
    return number


def _whole(text: str) -> int:
    _finite(text)
    return int(text)


def _read(file: Path) -> bytes:
    try:
        with open_regular(file) as opened:
            return opened.read()
    except OSError as error:
        raise MissingFileError(f"{file} cannot be read: {error.strerror or error}") from error


def open_regular(file: Path) -> FileIO:
    """Open a file to read it; a pipe would let who opens it wait, a device has no end. Raises OSError."""
    opened = FileIO(os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
        opened.close()
        raise OSError("it is not a regular file")
    return opened


def parse_manifest(document: object) -> Manifest:
    """Check a parsed manifest.json; raises what read_manifest raises, but for the file's own errors."""
    top = _Fields(document, "")
    version = top.get("format_version")
    if version != FORMAT_VERSION or type(version) is not int:
        raise UnknownVersionError(
            f"manifest.json: format_version is {_shown(version)}, this engine reads {FORMAT_VERSION}"
        )
    architecture = _architecture(top.fields("architecture"))
    quantization = top.fields("quantization")
    for name, scheme in QUANTIZATION.items():
        quantization.choice(name, (scheme,))
    embeddings = quantization.choice("embeddings", EMBEDDINGS)
    if embeddings == EMBEDDINGS[1] and architecture.hidden % PART:
        raise quantization.wrong("embeddings", f"{EMBEDDINGS[0]} where hidden is no multiple of {PART}")
    attention = quantization.choice("attention", ATTENTION) if "attention" in quantization.value else ATTENTION[0]
    sparsity = top.fields("sparsity")
    sparsity.number("overall", 0.0, 1.0)
    golden = top.get("golden")
    if not isinstance(golden, list) or not all(
        isinstance(g, dict) and {"input", "expected"} <= g.keys() for g in golden
    ):
        raise top.wrong("golden", "a list of objects with input and expected")
    return Manifest(
        name=top.text("name", NAME),
        architecture=architecture,
        attention=attention,
        embeddings=embeddings,
        task=_task(top.fields("task"), architecture),
        matrices=_matrices(top.fields("matrices"), architecture),
        sparsity=sparsity.value,
        quality=top.fields("quality").value,
        size=top.fields("size").value,
        provenance=top.fields("provenance").value,
        files=_files(top.fields("files")),
        golden=tuple(golden),
        raw=top.value,
    )


def _architecture(fields: _Fields) -> Architecture:
    family = fields.choice("family", FAMILIES)
    architecture = Architecture(
        family=family,
        layers=fields.integer("layers", 1, 1024),
        hidden=fields.integer("hidden", 1, 8192),
        heads=fields.integer("heads", 1, 8192),
        ffn=fields.integer("ffn", 1, 8192),
        vocabulary=fields.integer("vocabulary", 1, 1 << 24),
        positions=fields.integer("positions", 1, 1 << 16),
        types=fields.integer("types", *((0, 0) if family == "distilbert" else (1, 16))),
        activation=fields.choice("activation", ("gelu", "relu")),
        layer_norm_eps=fields.number("layer_norm_eps", 0.0, 1.0),
    )
    if architecture.hidden % architecture.heads:
        raise fields.wrong("hidden", f"a multiple of architecture.heads, {architecture.heads}")
    return architecture


def _task(fields: _Fields, architecture: Architecture) -> Task:
    name = fields.choice("name", TASKS)
    labels = fields.get("labels")
    if not isinstance(labels, list) or not all(isinstance(label, str) and label for label in labels):
        raise fields.wrong("labels", "a list of texts")
    if any(SURROGATES.search(label) for label in labels):
        raise fields.wrong("labels", "Unicode texts, without halves of surrogate pairs")
    if len(set(labels)) != len(labels):
        raise fields.wrong("labels", "all different")
    if name == "question-answering" and labels != ["start", "end"]:
        raise LabelCountError(f'manifest.json: task.labels is {_shown(labels)}, must be ["start", "end"] for {name}')
    if not 1 <= len(labels) <= 1 << 16:
        raise LabelCountError(f"manifest.json: task.labels holds {len(labels)} labels, must hold 1 to 65536")
    head_activation = fields.choice("head_activation", ("tanh", "relu") if name == "text-classification" else (None,))
    window = fields.integer("window", 3, architecture.positions)  # [CLS], one token, [SEP]
    longest = fields.integer("max_answer_tokens", 1, window) if name == "question-answering" else None
    if longest is None and fields.get("max_answer_tokens") is not None:
        raise fields.wrong("max_answer_tokens", f"null for {name}")
    kinds = {kind: fields.flag(kind) for kind in ("pairs", "multi_label")}
    for kind, wanted in kinds.items():
        if wanted and name != "text-classification":
            raise fields.wrong(kind, f"false for {name}")
    return Task(
        name=name,
        labels=tuple(labels),
        head_activation=head_activation,
        window=window,
        stride=fields.integer("stride", 0, max(0, window - 3)),
        max_answer_tokens=longest,
        no_answer_threshold=_no_answer_threshold(fields, name),
        **kinds,
    )


def _no_answer_threshold(fields: _Fields, task: str) -> float | None:
    if fields.value.get("no_answer_threshold") is None:
        return None
    if task != "question-answering":
        raise fields.wrong("no_answer_threshold", f"null for {task}")
    # Far beyond any sum of two logits, and finite.
    return fields.number("no_answer_threshold", -1e9, 1e9)


def matrix_names(architecture: Architecture) -> Iterator[tuple[str, tuple[int, int]]]:
    """Give the name and (rows, columns) of every sparse matrix, in order."""
    for layer in range(architecture.layers):
        for matrix in MATRICES:
            yield f"encoder.{layer}.{matrix}", architecture.matrix_shape(matrix)


def _matrices(fields: _Fields, architecture: Architecture) -> dict[str, MatrixInfo]:
    matrices = {}
    for name, (rows, columns) in matrix_names(architecture):
        entry = fields.fields(name)
        matrices[name] = MatrixInfo(
            rows=entry.integer("rows", rows, rows),
            columns=entry.integer("columns", columns, columns),
            survivors=entry.integer("survivors", 0, rows * columns),
            rice=entry.integer("rice", 0, 15),
        )
    for name in fields.value.keys() - matrices.keys():
        raise fields.wrong(name, "absent: the architecture has no such matrix")
    return matrices


def _files(fields: _Fields) -> dict[str, dict[str, Any]]:
    for name in CHECKED_FILES:
        entry = fields.fields(name)
        entry.text("sha256", "[0-9a-f]{64}")
        entry.integer("bytes", 0, 1 << 50)
    return {name: fields.value[name] for name in CHECKED_FILES}


# Which file was open: another of the same name, or what was written to it later, is another.
Identity = tuple[int, int, int, int]


def check_files(path: Path, manifest: Manifest) -> dict[str, Identity]:
    """Compare the size and sha256 of every file with the manifest; return which files these were.

    Raises MissingFileError, ChecksumError.
    """
    found = {}
    for name in CHECKED_FILES:
        expected = manifest.files[name]
        try:
            with open_regular(path / name) as file:
                found[name] = _identity(os.fstat(file.fileno()))
                size = os.fstat(file.fileno()).st_size
                digest = hashlib.file_digest(file, "sha256").hexdigest() if size == expected["bytes"] else ""
        except OSError as error:
            raise MissingFileError(f"{path / name} cannot be read: {error.strerror or error}") from error
        if size != expected["bytes"]:
            raise ChecksumError(f"{path / name} has {size} bytes, the manifest says {expected['bytes']}: copy it again")
        if digest != expected["sha256"]:
            raise ChecksumError(
                f"{path / name} has sha256 {digest}, the manifest says {expected['sha256']}: copy it again"
            )
    return found


def _identity(found: os.stat_result) -> Identity:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def check_same_files(path: Path, found: Mapping[str, Identity]) -> None:
    """Raise ChecksumError where a file is not the one any more that `check_files` looked at."""
    for name, identity in found.items():
        try:
            now = _identity((path / name).stat())
        except OSError:
            now = (0, 0, 0, 0)
        if now != identity:
            raise ChecksumError(f"{path / name} was replaced while it was read: load it again")


Layout = dict[str, tuple[str, tuple[int | None, ...]]]  # tensor name -> dtype as safetensors names it, shape


def tensor_layout(manifest: Manifest) -> Layout:
    """Give dtype and shape of every tensor that the file must hold, and of no other; None is any length."""
    a, task = manifest.architecture, manifest.task
    layout: Layout = {}
    tables = {"word": a.vocabulary, "position": a.positions} | ({"type": a.types} if a.types else {})
    for name, rows in tables.items():
        layout[f"embeddings.{name}"] = "I8", (rows, a.hidden)
        layout[f"embeddings.{name}.scale"] = "F32", (rows,)
    if manifest.embeddings == EMBEDDINGS[1]:
        parts = a.hidden // PART
        del layout["embeddings.word"]
        layout["embeddings.word.codes"] = "U8", (a.vocabulary, parts)
        layout["embeddings.word.codebooks"] = "I8", (parts, CODE_WORDS, PART)
        layout["embeddings.word.scale"] = "F32", (parts,)
    norms = ["embeddings.norm"]
    for layer in range(a.layers):
        norms += [f"encoder.{layer}.attention_norm", f"encoder.{layer}.output_norm"]
    for norm in norms:
        layout[f"{norm}.weight"] = layout[f"{norm}.bias"] = "F32", (a.hidden,)
    for name, matrix in manifest.matrices.items():
        layout[f"{name}.positions"] = "U8", (None,)
        layout[f"{name}.row_survivors"] = "U16", (matrix.rows,)
        layout[f"{name}.value_lengths"] = "U8", (VALUES,)
        layout[f"{name}.values"] = "U8", (None,)
        layout[f"{name}.scale"] = layout[f"{name}.bias"] = "F32", (matrix.rows,)
    heads = {"dense": a.hidden} if task.name == "text-classification" else {}
    for name, rows in (heads | {"output": len(task.labels)}).items():
        layout[f"head.{name}.weight"] = "F32", (rows, a.hidden)
        layout[f"head.{name}.bias"] = "F32", (rows,)
    return layout


NUMBERS = {"I8": np.int8, "U8": np.uint8, "U16": np.uint16, "F32": np.float32}  # as safetensors names them


class TensorFile:
    """An open model.safetensors whose names, dtypes and shapes are right; numbers are read and checked group by group.

    Raises: MissingFileError, CorruptTensorsError, MissingTensorError, UnexpectedTensorError, TensorDtypeError,
    TensorShapeError.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Open and check the file at `path`."""
        self.path = path
        self._names = list(tensor_layout(manifest))
        self._matrices = manifest.matrices
        try:
            self._file = open_regular(path)
        except OSError as error:
            raise MissingFileError(f"{path} cannot be read: {error}") from error
        try:
            self._header, self._data = self._checked_header(tensor_layout(manifest))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        """Return the file."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self._file.close()

    def _checked_header(self, layout: Layout) -> tuple[dict[str, Any], int]:
        """Return the header and where the numbers begin."""
        try:
            # The numbers are not read by it: it maps the file, and a process dies of a mapped file that was cut short.
            with safe_open(self.path, framework="numpy") as file:
                _check_layout(self.path, file, layout)
            length = int.from_bytes(self._bytes(0, 8), "little")
            return json.loads(self._bytes(8, length)), 8 + length
        except OSError as error:
            raise MissingFileError(f"{self.path} cannot be read: {error}") from error
        except (SafetensorError, ValueError) as error:
            if isinstance(error, ArtifactError):
                raise
            raise CorruptTensorsError(f"{self.path} cannot be parsed: {error}") from error

    @property
    def descriptor(self) -> int:
        """The open file's, for who reads on from it; it is closed with this object."""
        return self._file.fileno()

    def offset(self, name: str) -> int:
        """Return where the bytes of a tensor begin in the file; 0 where it has no such tensor."""
        return self._data + int(self._header[name]["data_offsets"][0]) if name in self._header else 0

    def _bytes(self, start: int, count: int) -> bytes:
        return self._read(start, np.empty(count, np.uint8)).tobytes()

    def _read(self, start: int, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        view, done = memoryview(array.reshape(-1).view(np.uint8).data), 0
        while done < len(view):
            got = os.preadv(self._file.fileno(), [view[done:]], start + done)
            if not got:
                raise CorruptTensorsError(f"{self.path} became shorter while it was read: load it again")
            done += got
        return array

    def _tensor(self, name: str) -> np.ndarray[Any, Any]:
        entry = self._header[name]
        try:
            return self._read(self.offset(name), np.empty(entry["shape"], NUMBERS[entry["dtype"]]))
        except OSError as error:
            raise CorruptTensorsError(f"{self.path} cannot be read: {error.strerror}") from error

    def group(self, prefix: str, without: str = "") -> dict[str, np.ndarray[Any, Any]]:
        """Read the tensors whose names begin with `prefix`, which is cut off, but for the one called `without`.

        Raises: ScaleError, NotFiniteError, SurvivorCountError.
        """
        names = [name for name in self._names if name.startswith(prefix) and name != without]
        tensors = {name: self._tensor(name) for name in names}
        for name, tensor in tensors.items():
            if name.endswith(".scale") and not (np.isfinite(tensor).all() and (tensor > 0).all()):
                raise ScaleError(f"{self.path}: {name} holds a scale that is not finite or not above 0")
            if tensor.dtype == np.float32 and not np.isfinite(tensor).all():
                raise NotFiniteError(f"{self.path}: {name} holds a number that is not finite")
            if name.endswith(".row_survivors"):
                survivors = self._matrices[name.removesuffix(".row_survivors")].survivors
                if (total := int(tensor.sum(dtype=np.int64))) != survivors:
                    raise SurvivorCountError(
                        f"{self.path}: {name} sum to {total}, but the manifest says {survivors} survivors"
                    )
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _check_layout(path: Path, file: Any, layout: Layout) -> None:
    found = set(file.keys())
    for name in layout:
        if name not in found:
            raise MissingTensorError(f"{path}: tensor {name} is missing")
    for name in sorted(found):
        if name not in layout:
            raise UnexpectedTensorError(f"{path}: tensor {name} has no place in this architecture")
        dtype, shape = layout[name]
        header = file.get_slice(name)
        if header.get_dtype() != dtype:
            raise TensorDtypeError(f"{path}: tensor {name} has dtype {header.get_dtype()}, must have {dtype}")
        actual = list(header.get_shape())
        if len(actual) != len(shape) or any(m not in (None, n) for n, m in zip(actual, shape, strict=True)):
            must = ["any" if m is None else m for m in shape]
            raise TensorShapeError(f"{path}: tensor {name} has shape {actual}, must have {must}")
