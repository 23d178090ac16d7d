"""The rows of the words stay in the artifact's file: the right ones come, and a file that changed is an error."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import engine
from engine import _engine
from tests.engine.plain import Plain
from tests.random_artifact import write_random_artifact

# Rows that are this far apart share a place in memory (FileTable::kKept in engine/src/model.h).
KEPT = 4096


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_random_artifact(tmp_path / "words", layers=1, hidden=32, heads=2, ffn=32, vocabulary=3 * KEPT)
    return tmp_path / "words"


def embedded(model: engine.Model, ids: list[int]) -> np.ndarray:
    return model.hidden_states(np.array(ids, np.int32), np.array([len(ids)], np.int32))[0]


def test_rows_that_share_a_place_stay_apart(folder: Path) -> None:
    model, plain = engine.load(folder, threads=1), Plain(folder)
    for ids in ([1, KEPT + 1, 1, 2 * KEPT + 1], [KEPT + 1, 2 * KEPT - 1, 3 * KEPT - 1, 0], [1, 1]):
        expected = plain.embed(np.array(ids), np.zeros(len(ids), int))
        np.testing.assert_allclose(embedded(model, ids), expected, atol=1e-5, rtol=0)


def test_a_file_that_was_removed_or_replaced_is_still_read(folder: Path) -> None:
    model = engine.load(folder, threads=1)
    file = folder / "model.safetensors"
    first = embedded(model, [5, 6])
    expected = embedded(engine.load(folder, threads=1), [7, 8])
    (folder / "new").write_bytes(bytes(file.stat().st_size))
    (folder / "new").rename(file)
    np.testing.assert_array_equal(embedded(model, [7, 8]), expected)
    file.unlink()
    np.testing.assert_array_equal(embedded(model, [5, 6]), first)


def test_a_file_cut_short_is_an_error_and_no_crash(folder: Path) -> None:
    model = engine.load(folder, threads=1)
    known = embedded(model, [1, 2])
    os.truncate(folder / "model.safetensors", 100)
    with pytest.raises(RuntimeError, match="became shorter since it was loaded"):
        embedded(model, [1, 2, 3])
    np.testing.assert_array_equal(embedded(model, [1, 2]), known)  # and what it has, it has


def test_a_file_without_the_words_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(bytes(100))
    sizes = {"layers": 1, "hidden": 32, "heads": 2, "ffn": 32, "vocabulary": 10, "positions": 4, "types": 2}
    model = _engine.Model(sizes | {"labels": 2}, "gelu", "int8", "tokens", 1e-12, 1, None)
    with (tmp_path / "short").open("rb") as file, pytest.raises(RuntimeError, match="became shorter while it was read"):
        model.load_embeddings({"word.scale": np.ones(10, np.float32)}, file.fileno(), 0)
    with pytest.raises(RuntimeError, match="cannot be kept open: Bad file descriptor"):
        model.load_embeddings({"word.scale": np.ones(10, np.float32)}, -1, 0)


CUT_SHORT = """
import os, sys, engine
from pathlib import Path
folder, where = Path(sys.argv[1]), sys.argv[2]
name = {"group": "group", "words": "offset"}[where]
real = getattr(engine.TensorFile, name)
def cut(self, *arguments, **named):
    os.truncate(folder / "model.safetensors", 100)
    return real(self, *arguments, **named)
setattr(engine.TensorFile, name, cut)
try:
    engine.load(folder)
except engine.ArtifactError as error:
    sys.exit(0 if "became shorter while it was read" in str(error) else str(error))
sys.exit("it was loaded")
"""


@pytest.mark.parametrize("where", ["group", "words"])
def test_a_file_that_is_cut_short_while_it_is_loaded_is_an_error_and_not_the_end(folder: Path, where: str) -> None:
    """A process that touches a mapped file behind its end gets SIGBUS: nothing may be read through a map."""
    done = subprocess.run(
        [sys.executable, "-c", CUT_SHORT, str(folder), where], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_a_folder_may_have_any_name(folder: Path, tmp_path: Path) -> None:
    odd = folder.rename(os.fsdecode(os.fsencode(tmp_path) + b"/m\xff"))
    assert engine.load(odd).forward(np.ones(3, np.int32), np.array([3], np.int32)).size


def test_memory_holds_no_table_of_words(folder: Path) -> None:
    """Loading reads no row: a table of 3 * 4096 * 32 bytes that was kept would be of numpy or of the engine."""
    with engine.TensorFile(folder / "model.safetensors", engine.read_manifest(folder)) as tensors:
        assert "word" not in tensors.group("embeddings.", without="embeddings.word")
        assert tensors.offset("embeddings.word") > 8
        assert tensors.offset("no such tensor") == 0
