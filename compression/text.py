"""Plain text to an array of tokens: read once, tokenized once, kept in the run folder.

A file is UTF-8, `.txt`, `.txt.gz` or `.txt.xz`: a paragraph a line, a blank line between documents.
"""

import gzip
import hashlib
import lzma
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tqdm import tqdm

from compression.data import DataError
from compression.files import remove, writing

_OPENERS = {".txt": open, ".gz": gzip.open, ".xz": lzma.open}
# Documents that are tokenized together, on all cores: some megabytes of text.
BATCH_DOCUMENTS = 1000


@dataclass(frozen=True)
class Corpus:
    """Tokens of all documents in a row.

    `tokens` uint16 or uint32 [N], mapped from the file; document d is tokens[starts[d] : starts[d + 1]], `starts`
    int64 [D + 1].
    """

    tokens: NDArray[np.unsignedinteger]
    starts: NDArray[np.int64]

    @property
    def documents(self) -> int:
        """Number of documents."""
        return len(self.starts) - 1


def read_documents(paths: Sequence[Path]) -> Iterator[str]:
    """Yield one document after the other, its paragraphs joined by newlines; never a whole file in memory.

    Raises:
        DataError: a missing file, an unknown suffix, a broken archive, bytes that are not UTF-8.
    """
    for path in paths:
        opener = _OPENERS.get(path.suffix)
        if opener is None:
            raise DataError(f"{path}: plain text must end in {', '.join(_OPENERS)}")
        if not path.is_file():
            raise DataError(f"{path}: no such file; give the folder that holds it with --data")
        try:
            with opener(path, "rt", encoding="utf-8") as lines:  # type: ignore[operator]
                yield from _documents(lines)
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 text: {error}") from error
        except (lzma.LZMAError, gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"{path}: the archive is broken or cut short: {error}") from error


def _documents(lines: IO[str]) -> Iterator[str]:
    paragraphs: list[str] = []
    for line in lines:
        if line.strip():
            paragraphs.append(line.strip())
        elif paragraphs:
            yield "\n".join(paragraphs)
            paragraphs = []
    if paragraphs:
        yield "\n".join(paragraphs)


def fingerprint_of_files(paths: Sequence[Path]) -> str:
    """Return a SHA-256 of the bytes of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def load_corpus(paths: Sequence[Path], tokenizer: Tokenizer, folder: Path, limit: int = 0) -> Corpus:
    """Return the tokens of the first `limit` documents (0 = all), without special tokens; kept in `folder`.

    Raises:
        DataError: as `read_documents`, and for less than two documents, which cannot be split.
        TrainingError: the disk is full.
    """
    if not folder.is_dir():
        scratch = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
        remove(scratch)
        scratch.mkdir(parents=True)
        try:
            with writing(scratch):
                documents = _tokenize(islice(read_documents(paths), limit or None), tokenizer, scratch)
            if documents < 2:
                raise DataError(
                    f"{', '.join(map(str, paths))}: {documents} document(s); training and validation need one each "
                    "(a blank line stands between documents)"
                )
            _put_in_place(scratch, folder)
        finally:
            remove(scratch)
    return Corpus(np.memmap(folder / "tokens.bin", _dtype(tokenizer), mode="r"), np.load(folder / "starts.npy"))


def drop_unfinished(folder: Path) -> None:
    """Remove what a kill left of an earlier `load_corpus` into `folder`; nobody else may be at it."""
    for left in folder.parent.glob(f"{folder.name}.*.tmp"):
        remove(left)


def _tokenize(documents: Iterator[str], tokenizer: Tokenizer, folder: Path) -> int:
    """Write the files of a corpus; return its number of documents that hold a token."""
    lengths: list[int] = []
    bar = tqdm(desc="tokenize", unit=" documents", mininterval=1.0)
    with (folder / "tokens.bin").open("wb") as file:
        while batch := list(islice(documents, BATCH_DOCUMENTS)):
            for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
                if encoding.ids:
                    lengths.append(len(encoding.ids))
                    file.write(np.array(encoding.ids, _dtype(tokenizer)).tobytes())
            bar.update(len(batch))
    bar.close()
    np.save(folder / "starts.npy", np.concatenate(([0], np.cumsum(lengths))).astype(np.int64))
    return len(lengths)


def _dtype(tokenizer: Tokenizer) -> type[np.unsignedinteger]:
    return np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32


def _put_in_place(scratch: Path, folder: Path) -> None:
    try:
        scratch.rename(folder)
    except OSError:  # another process of the same run was faster, with the same tokens
        if not folder.is_dir():
            raise


def split_documents(documents: int, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split documents at random into (training, validation); at least one each, both in rising order."""
    held = min(max(1, round(share * documents)), documents - 1)
    order = np.random.default_rng((seed, documents)).permutation(documents)
    return np.sort(order[held:]), np.sort(order[:held])
