"""Tables of texts in the forms they are published in."""

import json
from pathlib import Path

import pytest

from compression.data import DataError, read_examples
from compression.data_table import read_table
from compression.examples import TextExample
from compression.recipe import Table, Task

ONE = Task("text-classification", labels=("no", "yes"))
STARS = Task("text-classification", labels=("1", "2", "-1"))
PAIR = Task("text-classification", labels=("no", "yes"), pairs=True)
NLI = Task("text-classification", labels=("entailment", "neutral", "contradiction"), pairs=True)
QNLI = Task("text-classification", labels=("entailment", "not_entailment"), pairs=True)
MANY = Task("text-classification", labels=("joy", "anger", "fear"), multi_label=True)

MNLI_PARSES = ["sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse", "sentence2_parse"]
MNLI_HEADER = ["index", "promptID", "pairID", "genre", *MNLI_PARSES, "sentence1", "sentence2", "label1"]
# A half quotation mark in the text, as these files have them: they know no quoting.
TEXTS = ['He said "no.', "It's a yes"]


def tsv(*rows: list[str], end: str = "\n") -> bytes:
    return "".join("\t".join(row) + end for row in rows).encode()


GLUE = {
    "MNLI/train": (NLI, tsv([*MNLI_HEADER, "gold_label"], ["0", "1", "1n", "fiction", "", "", "", "", *TEXTS, "neutral",
                                                           "contradiction"]), 2),
    "MNLI/dev_matched": (NLI, tsv([*MNLI_HEADER, "label2", "label3", "label4", "label5", "gold_label"],
                                  ["0", "1", "1n", "slate", "", "", "", "", *TEXTS, *["neutral"] * 5, "contradiction"]),
                         2),
    "QQP": (PAIR, tsv(["id", "qid1", "qid2", "question1", "question2", "is_duplicate"], ["7", "1", "2", *TEXTS, "1"]),
            1),
    "QNLI": (QNLI, tsv(["index", "question", "sentence", "label"], ["0", *TEXTS, "not_entailment"]), 1),
    "RTE": (QNLI, tsv(["index", "sentence1", "sentence2", "label"], ["0", *TEXTS, "entailment"]), 0),
    "MRPC": (PAIR, tsv(["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"], ["1", "70", "71", *TEXTS]), 1),
    "msr_paraphrase": (PAIR, b"\xef\xbb\xbf" + tsv(["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"],
                                                   ["0", "70", "71", *TEXTS], end="\r\n"), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", GLUE)
def test_pairs_of_glue_as_published(tmp_path: Path, name: str) -> None:
    task, content, label = GLUE[name]
    file = tmp_path / "train.tsv"
    file.write_bytes(content)
    assert read_table(file, task, Table()) == [TextExample(TEXTS[0], label, TEXTS[1])]


def test_sst2_and_cola_as_published(tmp_path: Path) -> None:
    file = tmp_path / "x.tsv"
    file.write_text('label\tsentence\n1\ta "quoted text\nno\tb \n')
    assert read_examples(file, ONE) == [TextExample('a "quoted text', 1), TextExample("b", 0)]
    file.write_text("gj04\t1\t\tHe went.\ngj04\t0\t*\tHe goed.\n")  # no header
    assert read_examples(file, ONE) == [TextExample("He went.", 1), TextExample("He goed.", 0)]


def test_csv_has_quotes_and_lines_inside_them(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text('category,id,utterance\nyes,1,"a, ""b""\nc"\n1,2,d\n')
    table = Table(text="utterance", label="category")
    assert read_table(file, ONE, table) == [TextExample('a, "b"\nc', 1), TextExample("d", 1)]


def test_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    rows = [{"premise": "a", "hypothesis": "b", "label": 1}, {"hypothesis": "d", "label": "no", "premise": "c\u2028"}]
    file.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    assert read_table(file, PAIR, Table()) == [TextExample("a", 1, "b"), TextExample("c", 0, "d")]


def test_columns_without_header_are_numbered(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    file.write_text("so glad\t0,2\t17\nhm\t\t18\n")
    table = Table(text="1", label="2", header=False)
    assert read_table(file, MANY, table) == [TextExample("so glad", (0, 2)), TextExample("hm", ())]


def test_numbers_name_columns_also_where_a_table_looks_like_cola(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    file.write_text("gj04\t1\t\tHe went.\n")
    assert read_table(file, ONE, Table(text="4", label="2", header=False)) == [TextExample("He went.", 1)]


def test_labels_of_a_text_are_a_list_or_stand_between_separators(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text("text,label\na,fear | joy\nb,\n")
    assert read_table(file, MANY, Table(separator="|")) == [TextExample("a", (0, 2)), TextExample("b", ())]
    file = tmp_path / "x.jsonl"
    file.write_text('{"text": "a", "label": ["anger", 0]}\n{"text": "b", "label": []}\n{"text": "c", "label": 2}\n')
    expected = [TextExample("a", (0, 1)), TextExample("b", ()), TextExample("c", (2,))]
    assert read_table(file, MANY, Table()) == expected


BAD: list[tuple[str, Task, Table, str, str]] = [
    ("x.tsv", PAIR, Table(), "sentence\tlabel\na\t1\n", "x.tsv: text-classification needs columns for two texts"),
    ("x.tsv", ONE, Table(text="review"), "text\tlabel\na\t1\n", "no column 'review', which data.table names; found ["),
    ("x.tsv", ONE, Table(), "text\tclass\na\t1\n", "found ['text', 'class']; name yours in [data.table]"),
    ("x.tsv", ONE, Table(), "text\tlabel\na\t1\nb\tyes\tc\n", "x.tsv:3: 3 columns where the first line has 2"),
    ("x.tsv", ONE, Table(), "text\tlabel\na\t-\n", ":2: unknown label '-'; the recipe knows ['no', 'yes'] (or 0..1)"),
    ("x.tsv", ONE, Table(), "text\tlabel\na\t2\n", "x.tsv:2: unknown label '2'"),
    ("x.tsv", STARS, Table(), "text\tlabel\na\t0\n", "unknown label '0'; the recipe knows ['1', '2', '-1']"),
    ("x.tsv", MANY, Table(), "text\tlabel\na\tjoy,rage\n", "x.tsv:2: unknown label 'rage'"),
    ("x.csv", ONE, Table(), 'text,label\n"a"b,1\n', "x.csv:2: not CSV: "),
    ("x.csv", ONE, Table(), 'text,label\n"a,1\n', "not CSV: unexpected end of data"),
    ("x.csv", ONE, Table(), "", "found []"),
    ("x.jsonl", ONE, Table(), "[]\n", "x.jsonl:1: a JSON object is needed, found '[]'"),
    ("x.jsonl", ONE, Table(), '{"text": "a", "label": 1}\n{"text"\n', "x.jsonl:2: not JSON: "),
    ("x.jsonl", ONE, Table(), '{"text": "a", "label": 1}\n{"text": 3, "label": 1}\n', "'text' is 3, must be a text"),
    ("x.jsonl", ONE, Table(), '{"text": "a", "label": 1}\n{"text": "b"}\n', "x.jsonl:2: there is no 'label'"),
    ("x.jsonl", ONE, Table(), '{"text": "a", "label": 1}\n{"text": "ok \\ud83d.", "label": 1}\n',
     "x.jsonl:2: half a surrogate pair, such as half an emoji, at the end of 'ok \\ud83d'"),
    ("x.jsonl", PAIR, Table(), '{"text": "a", "text_pair": "\\ude00", "label": 1}\n', "x.jsonl:1: half a surrogate"),
    ("x.jsonl", ONE, Table(), '{"text": "a", "label": true}\n', "x.jsonl:1: unknown label 'True'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "task", "table", "content", "message"), BAD)
def test_a_bad_line_is_named_with_what_was_found(
    tmp_path: Path, name: str, task: Task, table: Table, content: str, message: str
) -> None:
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(DataError) as error:
        read_examples(file, task, table)
    assert message in str(error.value) and str(file) in str(error.value)


def test_as_many_bad_lines_as_allowed_are_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "x.tsv"
    file.write_text("text\tlabel\na\t1\nbroken\nin two\t\t1\nb\t0\n")
    assert len(read_table(file, ONE, Table(bad_lines=2))) == 2
    first = f"{file}:3: 1 columns where the first line has 2"
    assert f"2 bad lines skipped, as data.table.bad_lines allows; the first: {first}" in caplog.text
    with pytest.raises(DataError, match=r":4: .* \(and 1 bad lines before it"):
        read_table(file, ONE, Table(bad_lines=1))


def test_half_a_surrogate_pair_is_a_bad_line_and_a_whole_one_is_an_emoji(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"text": "\\ud83d\\ude00", "label": 1}\n{"text": "\\ud83d", "label": 1}\n')
    assert read_table(file, ONE, Table(bad_lines=1)) == [TextExample("\U0001f600", 1)]
