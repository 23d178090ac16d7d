"""How a file is written: whole or not at all, with a clear error where the disk is full."""

import errno
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError

from compression.failures import GO_ON, TrainingError


@contextmanager
def writing(path: Path, *, temporary: bool = True) -> Iterator[None]:
    """Write the file or folder `path` inside the block; a failure removes it where that is a temporary name.

    Raises:
        TrainingError: the disk is full, or the file cannot be written for another reason; what was there is intact.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        size = sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file()) if path.exists() else 0
        if temporary:
            remove(path)
        if isinstance(error, TrainingError):
            raise
        raise TrainingError(
            f"{path} cannot be written, {size:,} bytes in ({_reason(error)}; {free_bytes(path.parent):,} bytes are "
            f"free there); nothing half-written is left, the last checkpoint is intact: make room, then {GO_ON}"
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the temporary name to write a file under; it gets its own name when all went well, else it is removed.

    Raises TrainingError as `writing` does.
    """
    temporary = path.with_name(path.name + ".tmp")
    with writing(temporary):
        yield temporary
        temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all. Raises TrainingError as `writing` does."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def appending(path: Path) -> Iterator[BinaryIO]:
    """Open a file of lines to append one; a last line without an end, cut short by a kill, is ended first.

    Raises TrainingError when the disk is full; what was there is kept.
    """
    try:
        with path.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            yield file
    except OSError as error:
        raise TrainingError(f"{path} cannot be written ({_reason(error)}): make room, then {GO_ON}") from error


def _reason(error: BaseException) -> str:
    # torch.save reports that its archive has not the expected length; why, says the error before that.
    while not isinstance(error, OSError) and error.__context__ is not None:
        error = error.__context__
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return "a file may not be larger: see ulimit -f"
    return str(error).splitlines()[0]


def remove(path: Path) -> None:
    """Remove a file or a folder with all in it; nothing where there is none."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_room(folder: Path, needed: int) -> None:
    """Refuse to start what the disk cannot hold, `needed` more bytes. Raises TrainingError with both sizes."""
    free = free_bytes(folder)
    if needed > free:
        raise TrainingError(
            f"{folder}: the run needs about {shown_bytes(needed)} of disk, {shown_bytes(free)} are free; make room, or "
            "give another --run-folder"
        )


def missing_bytes(folder: Path, total: int) -> int:
    """Return by how much a folder, which need not exist yet, still has to grow to `total` bytes."""
    there = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
    return max(0, total - there)


def shown_bytes(number: float) -> str:
    """Return a number of bytes as people read it, in three digits."""
    steps = min(3, int(math.log10(max(1.0, number)) / 3))
    return f"{number / 1000**steps:.3g} {('B', 'kB', 'MB', 'GB')[steps]}"


def free_bytes(folder: Path) -> int:
    """Return the bytes that can still be written below `folder`, which need not exist yet."""
    while not folder.exists():
        folder = folder.absolute().parent
    return shutil.disk_usage(folder).free
