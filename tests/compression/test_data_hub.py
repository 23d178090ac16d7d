"""Sets that the `datasets` library loads: from local folders here, as the hub's are from the network."""

import json
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from compression.data import DataError, read_examples
from compression.examples import QuestionExample, TaggedExample, TextExample
from compression.recipe import Table, Task

PAIR = Task("text-classification", labels=("contradiction", "entailment"), pairs=True)
ENTITIES = Task("token-classification", labels=("PER", "LOC"))
TAGS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]  # not our order: names decide


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def parquet(folder: Path, rows: dict[str, list[Any]], **features: Any) -> str:
    made = datasets.Dataset.from_dict(rows)
    for name, feature in features.items():
        made = made.cast_column(name, feature)
    folder.mkdir()
    made.to_parquet(folder / "train.parquet")
    return f"hub:{folder}:train"


def test_classes_go_by_their_names(tmp_path: Path) -> None:
    rows: dict[str, list[Any]] = {"premise": ["a", "c"], "hypothesis": ["b", "d"], "label": [0, 1]}
    source = parquet(tmp_path / "nli", rows, label=datasets.ClassLabel(names=["entailment", "contradiction"]))
    assert read_examples(source, PAIR) == [TextExample("a", 1, "b"), TextExample("c", 0, "d")]


def test_label_lists_and_named_columns(tmp_path: Path) -> None:
    task = Task("text-classification", labels=("joy", "anger"), multi_label=True)
    rows: dict[str, list[Any]] = {"comment": ["a", "b"], "feelings": [[0, 1], []]}
    source = parquet(tmp_path / "go", rows, feelings=datasets.List(datasets.ClassLabel(names=["anger", "joy"])))
    table = Table(text="comment", label="feelings")
    assert read_examples(source, task, table) == [TextExample("a", (0, 1)), TextExample("b", ())]


def test_questions_and_sentences(tmp_path: Path) -> None:
    answers = [{"text": ["oslo"], "answer_start": [14]}, {"text": [], "answer_start": []}]
    rows = {"id": ["1", "2"], "question": ["where?", "who?"], "context": ["anna lives in oslo"] * 2, "answers": answers}
    found = read_examples(parquet(tmp_path / "squad", rows), Task("question-answering", no_answer=True))
    assert found == [
        QuestionExample("1", "where?", "anna lives in oslo", ((14, "oslo"),)),
        QuestionExample("2", "who?", "anna lives in oslo", ()),
    ]
    tagged: dict[str, list[Any]] = {"tokens": [["Anna", "in", "Oslo"]], "ner_tags": [[3, 0, 1]]}
    source = parquet(tmp_path / "ner", tagged, ner_tags=datasets.List(datasets.ClassLabel(names=TAGS)))
    assert read_examples(source, ENTITIES) == [TaggedExample(("Anna", "in", "Oslo"), ("B-PER", "O", "B-LOC"))]


def test_configurations_are_named_in_the_middle(tmp_path: Path) -> None:
    folder = tmp_path / "glue"
    for config, word in (("rte", "yes"), ("wnli", "no")):
        (folder / config).mkdir(parents=True)
        row = {"sentence1": "a", "sentence2": word, "label": "entailment"}
        (folder / config / "dev.jsonl").write_text(json.dumps(row))
    configs = [{"config_name": c, "data_files": [{"split": "dev", "path": f"{c}/dev.jsonl"}]} for c in ("rte", "wnli")]
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    assert read_examples(f"hub:{folder}:wnli:dev", PAIR) == [TextExample("a", 1, "no")]


BAD: list[tuple[dict[str, list[Any]], dict[str, Any], Task, str]] = [
    ({"text": ["a"], "label": [1]}, {}, PAIR, "needs columns for two texts"),
    ({"text": ["a"], "text_pair": ["b"], "label": [-1]}, {"label": datasets.ClassLabel(names=["entailment"])}, PAIR,
     "row 0: unknown label '-1'"),
    ({"id": ["1"], "question": ["?"], "context": ["a"]}, {}, Task("question-answering"),
     "row 0: there is no column 'answers'; found ['id', 'question', 'context']"),
    ({"tokens": [["a"]], "ner_tags": [["B-ORG"]]}, {}, ENTITIES, "row 0: unknown tag 'B-ORG'"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "features", "task", "message"), BAD)
def test_a_set_that_does_not_fit_says_where_and_why(
    tmp_path: Path, rows: dict[str, list[Any]], features: dict[str, Any], task: Task, message: str
) -> None:
    source = parquet(tmp_path / "set", rows, **features)
    with pytest.raises(DataError) as error:
        read_examples(source, task)
    assert message in str(error.value) and str(error.value).startswith(source)


def test_rows_without_a_label_are_skipped_where_bad_lines_allow_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """SNLI's annotators did not agree on some pairs: their label is -1."""
    rows: dict[str, list[Any]] = {"premise": ["a", "b", "c"], "hypothesis": ["d", "e", "f"], "label": [0, -1, 1]}
    source = parquet(tmp_path / "snli", rows, label=datasets.ClassLabel(names=["entailment", "contradiction"]))
    assert read_examples(source, PAIR, Table(bad_lines=1)) == [TextExample("a", 1, "d"), TextExample("c", 0, "f")]
    first = f"{source}: row 1: unknown label '-1'"
    assert f"1 bad lines skipped, as data.table.bad_lines allows; the first: {first}" in caplog.text
    with pytest.raises(DataError, match="row 1: unknown label '-1'"):
        read_examples(source, PAIR)


@pytest.mark.parametrize("source", ["hub:", "hub:imdb", "hub:a:b:c:d"])
def test_a_source_that_names_no_split_says_how(source: str) -> None:
    with pytest.raises(DataError, match="is hub:NAME:SPLIT or hub:NAME:CONFIG:SPLIT"):
        read_examples(source, PAIR)


def test_a_set_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"cannot be loaded: .*Error: "):
        read_examples(f"hub:{tmp_path / 'empty'}:train", PAIR)


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="need the datasets library: pip install datasets"):
        read_examples("hub:imdb:train", PAIR)
