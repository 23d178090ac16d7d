"""Texts to single sentences that nobody labelled: the teacher says what they hold, and sparse models learn it.

A sparse model that has seen the labelled texts alone follows its teacher there and less elsewhere; more texts show it
more of what the teacher knows (arXiv 1908.08962, section 3, calls them the transfer set).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Final

import numpy as np

from compression.data import check_sources, read_contexts, read_sources
from compression.examples import DataError
from compression.recipe import Data
from compression.text import read_documents

# Neighbouring sentences say much of the same: so many of a document at most, chosen at random.
PER_DOCUMENT: Final = 8
# Shorter ones are mostly headings and what is left of tables, longer ones lists.
LEAST_CHARACTERS, MOST_CHARACTERS = 20, 500

# The end of a sentence before what may begin another. Abbreviations cut some in two, which does no harm here.
_BETWEEN: Final = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-Z0-9])")
_ENDS: Final = (".", "!", "?", '"', "'", ")")


def read_unlabelled(folder: Path, data: Data, seed: int) -> list[str]:
    """Read what `data.unlabelled` of a recipe asks for from the data folder; nothing where it is absent.

    Raises DataError as `read_sentences` does.
    """
    asked = data.unlabelled
    if asked is None:
        return []
    paths = [folder / name for name in asked.files]
    _check_files(paths, asked.sources)
    return read_sentences(paths, asked.sentences, seed, asked.sources)


def _check_files(paths: Sequence[Path], sources: tuple[str, ...]) -> None:
    """Raise DataError for a file that is not there though it may not be reached, and a source that no file has."""
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: no such file; give the folder that holds it with --data")
    there = {source for path in paths if path.suffix == ".json" and sources for source in read_sources(path)}
    check_sources(", ".join(map(str, paths)), there, sources, "data.unlabelled.sources")


def read_sentences(paths: Sequence[Path], count: int, seed: int, sources: tuple[str, ...] = ()) -> list[str]:
    """Read `count` sentences from files, from the first documents of the first file on.

    A file is SQuAD JSON (`.json`), every context of `sources` (none named: of all) a document, or text, see
    `data.read_contexts` and `text.read_documents`. Raises DataError as these do, and where there are fewer.
    """
    documents = (document for path in paths for document in _documents(path, sources))
    found = list(islice(_sentences(documents, np.random.default_rng(seed)), count))
    if len(found) < count:
        names = ", ".join(map(str, paths))
        raise DataError(
            f"{names}: {len(found):,} sentences, at most {PER_DOCUMENT} of a document (what stands between "
            f"blank lines, or a context of a SQuAD file); data.unlabelled.sentences asks for {count:,}"
        )
    return found


def _documents(path: Path, sources: tuple[str, ...]) -> Iterable[str]:
    if path.suffix == ".json":
        return dict.fromkeys(read_contexts(path, sources))  # a context may stand there more than once
    return read_documents([path])


def _sentences(documents: Iterable[str], chance: np.random.Generator) -> Iterator[str]:
    for document in documents:
        whole = [
            sentence
            for paragraph in document.splitlines()
            for sentence in split_sentences(paragraph)
            if LEAST_CHARACTERS <= len(sentence) <= MOST_CHARACTERS and sentence.endswith(_ENDS)
        ]
        few = min(PER_DOCUMENT, len(whole))
        for number in sorted(chance.choice(len(whole), few, replace=False)) if few else ():
            yield whole[number]


def split_sentences(paragraph: str) -> list[str]:
    """Split a paragraph where a sentence seems to end; nothing but white space is lost."""
    cuts = [0, *(match.end() for match in _BETWEEN.finditer(paragraph)), len(paragraph)]
    return [piece for start, end in pairwise(cuts) if (piece := paragraph[start:end].strip())]
