import gzip
import lzma
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compression.data import DataError
from compression.text import load_corpus, read_documents, split_documents
from tests.compression import tiny

TEXT = "the film\n was good \n\n\nanna lives\n\n"


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz", ".txt.xz"])
def test_documents_of_every_kind_of_file(tmp_path: Path, suffix: str) -> None:
    content = TEXT.encode()
    packed = {".txt": content, ".txt.gz": gzip.compress(content), ".txt.xz": lzma.compress(content)}[suffix]
    (tmp_path / f"a{suffix}").write_bytes(packed)
    assert list(read_documents([tmp_path / f"a{suffix}"])) == ["the film\nwas good", "anna lives"]


def test_files_follow_each_other_and_do_not_run_together(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("anna")
    (tmp_path / "b.txt").write_text("ben\n\nclara")
    assert list(read_documents([tmp_path / "a.txt", tmp_path / "b.txt"])) == ["anna", "ben", "clara"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pdf", b"x", "plain text must end in .txt, .gz, .xz"),
        ("a.txt", b"caf\xe9", "not UTF-8 text"),
        ("a.txt.xz", lzma.compress(TEXT.encode() * 99)[:-20], "broken or cut short"),
        ("a.txt.gz", gzip.compress(TEXT.encode() * 99, mtime=0)[:-20], "broken or cut short"),
        ("a.txt.gz", b"not an archive", "broken or cut short"),
        ("a.txt", b"one document\n", "1 document(s); training and validation need one each"),
        ("a.txt", b"", "0 document(s)"),
    ],
)  # fmt: skip
def test_a_bad_file_says_why_and_leaves_nothing_behind(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        load_corpus([tmp_path / name], tiny.tokenizer(), tmp_path / "text")
    assert message in str(error.value) and name in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_missing_file_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file; give the folder that holds it with --data"):
        list(read_documents([tmp_path / "none.txt"]))


def test_tokens_are_those_of_the_documents_and_are_read_once(tmp_path: Path) -> None:
    file = tiny.write_text(tmp_path / "text.txt", documents=5)
    tokenizer = tiny.tokenizer()
    expected = [tokenizer.encode(text, add_special_tokens=False).ids for text in read_documents([file])]
    for _ in range(2):
        corpus = load_corpus([file], tokenizer, tmp_path / "kept")
        assert corpus.documents == 5 and corpus.tokens.dtype == np.uint16
        found = [corpus.tokens[corpus.starts[d] : corpus.starts[d + 1]].tolist() for d in range(5)]
        assert found == expected
        file.unlink(missing_ok=True)  # the second time only the kept array is there


def test_only_the_first_documents_where_the_recipe_says_so(tmp_path: Path) -> None:
    file = tiny.write_text(tmp_path / "text.txt", documents=9)
    assert load_corpus([file], tiny.tokenizer(), tmp_path / "kept", limit=4).documents == 4


@given(documents=st.integers(2, 200), share=st.floats(0.001, 0.999), seed=st.integers(0, 9))
def test_a_split_holds_every_document_once_and_both_parts_something(documents: int, share: float, seed: int) -> None:
    train, held = split_documents(documents, share, seed)
    assert sorted([*train, *held]) == list(range(documents))
    assert len(train) and len(held)
    assert abs(len(held) - share * documents) <= 1
    assert list(held) == list(split_documents(documents, share, seed)[1])
