"""What an artifact is: zeros, kernel format and bytes of every matrix, sizes, quality, where it comes from."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table

import engine

# Names for the columns of a terminal, in the artifact's own order.
SHORT: Final = {
    "query": "query",
    "key": "key",
    "value": "value",
    "attention_output": "output",
    "ffn_in": "ffn in",
    "ffn_out": "ffn out",
}


@dataclass(frozen=True)
class Matrix:
    """One sparse matrix: `sparsity` is its share of zeros, `bytes` what its six tensors take in the file.

    `format` is what the engine chose for it on this machine at this moment, see docs/engine.md.
    """

    layer: int
    name: str
    rows: int
    columns: int
    survivors: int
    sparsity: float
    bytes: int
    format: str


@dataclass(frozen=True)
class Inspection:
    """All of one artifact; `parts` are the bytes on disk by what they are for."""

    manifest: engine.Manifest
    isa: str
    matrices: tuple[Matrix, ...]
    parts: Mapping[str, int]


def inspect_artifact(path: Path) -> Inspection:
    """Load the artifact at `path`, with one thread, and describe it.

    Raises:
        engine.ArtifactError: it cannot be loaded. ValueError: SPARSELANE_ISA is not one of this machine.
    """
    loaded = engine.load(path, threads=1)
    manifest = loaded.manifest
    tensors = _tensor_bytes(path / "model.safetensors")
    matrices = tuple(_matrices(manifest, tensors, loaded.formats))
    encoder = sum(matrix.bytes for matrix in matrices)
    embeddings = sum(size for name, size in tensors.items() if name.startswith("embeddings."))
    parts = {
        "encoder's matrices": encoder,
        "embeddings": embeddings,
        "norms and head": sum(tensors.values()) - encoder - embeddings,
        "tokenizer": int(manifest.files["tokenizer.json"]["bytes"]),
    }
    return Inspection(manifest, loaded.isa, matrices, parts)


def _tensor_bytes(file: Path) -> dict[str, int]:
    """Read the header of a safetensors file, which the engine has checked: eight bytes of length, then JSON."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    spans = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    return {name: end - start for name, (start, end) in spans.items()}


def _matrices(manifest: engine.Manifest, tensors: Mapping[str, int], formats: list[str]) -> Iterator[Matrix]:
    for (full, info), form in zip(manifest.matrices.items(), formats, strict=True):
        _, layer, name = full.split(".")
        size = sum(number for tensor, number in tensors.items() if tensor.rpartition(".")[0] == full)
        zeros = 1 - info.survivors / (info.rows * info.columns)
        yield Matrix(int(layer), name, info.rows, info.columns, info.survivors, zeros, size, form)


def as_json(found: Inspection) -> dict[str, Any]:
    """Return everything as plain JSON."""
    sections = ("name", "architecture", "task", "quantization", "sparsity", "quality", "size", "provenance")
    return {
        **{name: found.manifest.raw[name] for name in sections},
        "golden_examples": len(found.manifest.golden),
        "isa": found.isa,
        "parts": dict(found.parts),
        "matrices": [asdict(matrix) for matrix in found.matrices],
    }


def as_tables(found: Inspection) -> RenderableType:
    """Return what a person wants to see first, for a terminal of 80 columns."""
    return Group(_facts(found), _layers(found), _sizes(found))


def _facts(found: Inspection) -> Table:
    raw, table = found.manifest.raw, Table("", "", title=found.manifest.name, show_header=False)
    a, task = raw["architecture"], found.manifest.task
    shape = f"{a['layers']} layers, {a['hidden']} wide, {a['heads']} heads, {a['vocabulary']:,} tokens"
    labels = ", ".join(task.labels[:12]) + (" …" if len(task.labels) > 12 else "")
    rows = {
        "architecture": f"{a['family']}, {shape}",
        "task": f"{task.name} ({labels}), windows of {task.window} tokens",
        "zeros": f"{found.manifest.sparsity['overall']:.2%} ({found.manifest.sparsity.get('pattern', 'unknown')})",
        "quality": _quality(raw["quality"]),
        **{name: _shown(value) for name, value in raw["provenance"].items() if name != "recipe"},
        "golden examples": str(len(found.manifest.golden)),
        "weights' sha256": str(found.manifest.files["model.safetensors"]["sha256"]),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _quality(quality: Mapping[str, Any]) -> str:
    scores = ", ".join(
        f"{what} {'not measured' if quality.get(what) is None else quality[what]}"
        for what in ("dense", "sparse", "quantized")
    )
    return f"{quality.get('metric')} on {quality.get('dataset')} {quality.get('split')}: {scores}"


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]} …"


def _layers(found: Inspection) -> Table:
    """Two lines a layer: zeros and bytes of each matrix, then its format; as wide as 80 columns allow."""
    title = f"zeros in %, bytes, format on {found.isa}"
    table = Table("layer", *SHORT.values(), title=title, box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for layer in range(found.manifest.architecture.layers):
        row = [matrix for matrix in found.matrices if matrix.layer == layer]
        cells = (
            f"{100 * matrix.sparsity:.1f} {size(matrix.bytes).replace(' ', '')}\n{matrix.format}" for matrix in row
        )
        table.add_row(str(layer), *cells)
    return table


def _sizes(found: Inspection) -> Table:
    table = Table("part", "bytes", "share", title="on disk")
    for column in table.columns[1:]:
        column.justify = "right"
    total = sum(found.parts.values())
    for name, number in found.parts.items():
        table.add_row(name, size(number), f"{number / total:.1%}")
    dense = found.manifest.size.get("dense_fp32_bytes")
    ratio = f"{dense / total:.1f} times smaller than dense float32" if isinstance(dense, int) else ""
    table.add_row("together", size(total), ratio)
    return table


def size(number: int) -> str:
    """Return bytes as short text."""
    return f"{number} B" if number < 1000 else f"{number / 1e3:.0f} kB" if number < 1e6 else f"{number / 1e6:.1f} MB"
