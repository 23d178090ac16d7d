"""Damages an artifact on purpose and puts its checksums right again, so that the checks behind them are reached."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

Tensors = dict[str, np.ndarray]


def overwrite(file: Path, content: bytes) -> None:
    """Replace a file's content in place; truncating it first makes some file systems flush, which is slow."""
    with file.open("r+b", buffering=0) as open_file:
        open_file.write(content)
        if open_file.seek(0, 2) != len(content):
            open_file.truncate(len(content))


def seal(folder: Path) -> None:
    """Write the size and sha256 of every file, as it is now, into the manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        content = (folder / name).read_bytes()
        entry |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    overwrite(folder / "manifest.json", json.dumps(manifest).encode())


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    edit(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def edit_tensors(folder: Path, edit: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")
    seal(folder)
