"""Runs sparse int8 BERT encoders on CPUs: load an artifact, call forward."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine import _engine
from engine.artifact import (
    ArtifactError,
    CorruptTensorsError,
    Identity,
    IndexRangeError,
    Manifest,
    PositionsTrailingError,
    PositionsTruncatedError,
    TensorFile,
    ValueCodeError,
    ValuesTrailingError,
    ValuesTruncatedError,
    check_files,
    check_same_files,
    read_manifest,
)

__all__ = [
    "ArtifactError",
    "Manifest",
    "Model",
    "load",
    "read_manifest",
    "release_memory",
    "supported_isas",
    "threads_from_quota",
]

# Named once here, because the C++ side knows nothing of files.
_DECODE_ERRORS: dict[type[Exception], type[ArtifactError]] = {
    _engine.IndexOutOfRangeError: IndexRangeError,
    _engine.PositionsTruncatedError: PositionsTruncatedError,
    _engine.PositionsTrailingError: PositionsTrailingError,
    _engine.ValueCodeWrongError: ValueCodeError,
    _engine.ValuesTruncatedError: ValuesTruncatedError,
    _engine.ValuesTrailingError: ValuesTrailingError,
}

Int32s = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


class Model:
    """A loaded artifact, made by `load`.

    Safe to call from several threads: calls wait for each other, without the GIL.
    """

    def __init__(self, manifest: Manifest, native: _engine.Model, path: Path, checked: Mapping[str, Identity]) -> None:
        """Keep what `load` made, and of which files."""
        self.manifest = manifest
        self._native = native
        self._path, self._checked = path, checked

    def check_files(self) -> None:
        """Raise ChecksumError where the artifact's files are not those any more that were checked and loaded.

        For who reads one of them after `load`, the tokenizer.
        """
        check_same_files(self._path, self._checked)

    @property
    def threads(self) -> int:
        """Threads that one call uses, the calling one included."""
        return self._native.threads

    @property
    def isa(self) -> str:
        """The name of the kernels that run, one of `supported_isas()`."""
        return self._native.isa

    @property
    def formats(self) -> list[str]:
        """The format that each matrix got, in the order of the manifest's `matrices`; see docs/engine.md."""
        return self._native.formats

    def forward(self, input_ids: Int32s, lengths: Int32s, type_ids: Int32s | None = None) -> Floats:
        """Run a ragged batch and return its logits.

        input_ids and type_ids: [total tokens], the sequences one after another; lengths: [sequences], each 1 to the
        model's positions, with sum total; type_ids None is all 0. All int32, C-contiguous.
        Returns float32 [sequences, labels] for text-classification, else [total tokens, labels]. The same sequence
        gives the same bits in every batch and with every number of threads.
        Raises TypeError for a wrong dtype or rank, ValueError for a value out of its limits.
        """
        return self._native.forward(*_checked(input_ids, lengths, type_ids))

    def hidden_states(self, input_ids: Int32s, lengths: Int32s, type_ids: Int32s | None = None) -> Floats:
        """Run a ragged batch and return float32 [layers + 1, total tokens, hidden].

        First what the embeddings give, then every layer's output. Arguments and errors as in `forward`.
        """
        return self._native.hidden_states(*_checked(input_ids, lengths, type_ids))


def _checked(input_ids: Any, lengths: Any, type_ids: Any) -> tuple[Int32s, Int32s, Int32s | None]:
    for name, array in (("input_ids", input_ids), ("lengths", lengths), ("type_ids", type_ids)):
        if array is None and name == "type_ids":
            continue
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{name} is a {type(array).__name__}, must be a numpy array of int32")
        if array.dtype != np.int32:
            raise TypeError(f"{name} has dtype {array.dtype}, must be int32")
        if array.ndim != 1:
            raise TypeError(f"{name} has {array.ndim} dimensions, must have 1")
        if not array.flags.c_contiguous:
            raise TypeError(f"{name} is not contiguous: pass np.ascontiguousarray({name})")
    return input_ids, lengths, type_ids


def load(
    path: str | Path, *, threads: int | None = None, isa: str | None = None, attention: str | None = None
) -> Model:
    """Read and check all of an artifact and make it ready to run.

    threads: 1 to threads_from_quota() and 256, whichever is less, which is also the default. isa: one of
    supported_isas(); the default is the environment variable SPARSELANE_ISA, else the fastest.
    attention: "int8" or "float32" products instead of what the artifact says (quantization.attention), to see what they
    cost or change.
    Raises a subclass of ArtifactError named after what is wrong with the files, ValueError for the arguments,
    RuntimeError where the threads cannot be started.
    """
    quota = min(threads_from_quota(), _engine.MAX_THREADS)
    threads = quota if threads is None else threads
    if not 1 <= threads <= quota:
        raise ValueError(f"threads is {threads}, must be 1 to {quota}, the CPUs that this process may use")
    path = Path(path)
    manifest = read_manifest(path)
    checked = check_files(path, manifest)
    try:
        with TensorFile(path / "model.safetensors", manifest) as tensors:
            model = Model(manifest, _load(manifest, tensors, threads, isa, attention), path, checked)
    except tuple(_DECODE_ERRORS) as error:
        raise _DECODE_ERRORS[type(error)](f"{path / 'model.safetensors'}: {error}") from error
    model.check_files()
    return model


def _load(
    manifest: Manifest, tensors: TensorFile, threads: int, isa: str | None, attention: str | None
) -> _engine.Model:
    """Hand the tensors over layer by layer, so that the file's order and the engine's never lie in memory in full."""
    a, task = manifest.architecture, manifest.task
    sizes = {
        name: getattr(a, name) for name in ("layers", "hidden", "heads", "ffn", "vocabulary", "positions", "types")
    }
    native = _engine.Model(
        sizes=sizes | {"labels": len(task.labels)},
        activation=a.activation,
        attention=attention or manifest.attention,
        head=task.head_activation or "tokens",
        epsilon=a.layer_norm_eps,
        threads=threads,
        isa=isa,
    )
    # The rows of the words stay in the file.
    words = "embeddings.word"
    embeddings = tensors.group("embeddings.", without=words)
    try:
        native.load_embeddings(embeddings, tensors.descriptor, tensors.offset(words))
    except RuntimeError as error:  # of the file
        raise CorruptTensorsError(f"{tensors.path}: {error}") from error
    for layer in range(a.layers):
        prefix = f"encoder.{layer}."
        rice = [manifest.matrices[prefix + matrix].rice for matrix in _engine.MATRICES]
        native.load_layer(layer, tensors.group(prefix), rice)
    native.load_head(tensors.group("head."))
    return native


def release_memory() -> None:
    """Give memory that loading needed and freed back to the system, where the C library would keep it (glibc)."""
    _engine.release_memory()


def supported_isas() -> list[str]:
    """Name the kernel sets that this CPU and this build can run, slowest first; "reference" is always one."""
    return _engine.supported_isas()


def threads_from_quota(root: str | Path = "/") -> int:
    """Count the CPUs this process may keep busy: the affinity mask (cpuset), cut to the cgroup's quota, rounded down.

    root: where proc/ and sys/ lie, for tests. Reads cgroup v2 (cpu.max) and v1 (cpu.cfs_quota_us), of the process's
    group and all above it; at least 1. More threads than quota would be stopped by the kernel in mid-request.
    """
    return max(1, int(cpu_quota(root)))


def cpu_quota(root: str | Path = "/") -> float:
    """Return what `threads_from_quota` rounds down: the CPUs this process may keep busy."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for group in cpu_groups(root) if (quota := _quota(group)) is not None]
    return min([float(cpus), *quotas])


def cpu_groups(root: str | Path = "/") -> list[Path]:
    """List the folders that may hold a CPU quota for this process: where it may be mounted, then the way up from it."""
    root = Path(root)
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    mounts = root / "sys/fs/cgroup"
    folders = [mounts, mounts / "cpu", mounts / "cpu,cpuacct"]  # in a container the group is often mounted as the root
    for line in lines:
        _, controllers, group = [*line.split(":", 2), "?", "?"][:3]  # an odd line matches no controller
        if controllers not in ("", "cpu", "cpu,cpuacct", "cpuacct,cpu"):
            continue
        base = mounts / controllers
        relative = Path(group.lstrip("/"))
        folders += [base / part for part in (relative, *relative.parents)]
    return folders


def _quota(group: Path) -> float | None:
    """Read the quota of one cgroup in CPUs; None where there is none."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text()
            period = (group / "cpu.cfs_period_us").read_text()
        return float(quota) / float(period) if float(quota) > 0 and float(period) > 0 else None
    except (OSError, ValueError):  # no such file, or "max": no quota
        return None
