import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compression.data import (
    DataError,
    QuestionExample,
    TaggedExample,
    find_source,
    read_contexts,
    read_examples,
    read_training,
    tags_of,
    to_iob2,
)
from compression.recipe import Data, Task
from tests.compression import tiny

SENTIMENT = Task("text-classification", labels=("negative", "positive"))
ENTITIES = Task("token-classification", labels=("PER", "LOC"))
QUESTIONS = Task("question-answering")


def test_conll_reads_iob1_with_docstart_and_no_last_blank_line(tmp_path: Path) -> None:
    file = tmp_path / "x.conll"
    file.write_text("-DOCSTART- -X- O O\n\nAnna NNP I-NP I-PER\nBen NNP I-NP B-PER\nin IN O O\n\nOslo\tI-LOC")
    assert read_examples(file, ENTITIES) == [
        TaggedExample(("Anna", "Ben", "in"), ("B-PER", "B-PER", "O")),
        TaggedExample(("Oslo",), ("B-LOC",)),
    ]


def test_conll_of_tweets_has_lines_that_lost_their_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As the Broad Twitter Corpus: columns between tabs, a blank behind some words, an emoji that got lost."""
    file = tmp_path / "x.conll"
    file.write_text(
        "\ufeff-DOCSTART-\tO\n\nAnna \tB-PER\n\tO\n in\tO\n \tO\n\nNew Oslo\tX\tB-LOC\t\n", encoding="utf-8"
    )
    assert read_examples(file, ENTITIES) == [
        TaggedExample(("Anna", "in"), ("B-PER", "O")),
        TaggedExample(("New Oslo",), ("B-LOC",)),
    ]
    assert f"{file}: 2 lines without a word left out, the first is line 4" in caplog.text


def test_squad_answers_have_their_place(tmp_path: Path) -> None:
    example = read_examples(tiny.write_questions(tmp_path / "q.json", copies=1), QUESTIONS)[0]
    assert (example.question, example.answers) == ("where does anna live?", ((14, "paris"),))


@given(st.lists(st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])))
def test_to_iob2_starts_every_entity_with_b_and_is_idempotent(tags: list[str]) -> None:
    result = to_iob2(tags)
    assert [tag[1:] for tag in result] == [tag[1:] for tag in tags]
    assert to_iob2(result) == result
    for before, tag in zip(("O", *result), result, strict=False):
        assert not tag.startswith("I-") or before[2:] == tag[2:]


def test_tags_of_groups() -> None:
    assert tags_of(["PER", "LOC"]) == ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


@pytest.mark.parametrize(
    ("content", "task", "message"),
    [
        ("sentence\tlabel\ngood\t2\n", SENTIMENT, ":2: unknown label '2'; the recipe knows ['negative', 'positive']"),
        ("sentence\tlabel\ngood\t1\textra\n", SENTIMENT, ":2: 3 columns where the first line has 2"),
        ('{"data": []}', SENTIMENT, "needs columns for a text (sentence or text) and for a label"),
        ("sentence\tlabel\n", SENTIMENT, "holds no examples"),
        ("Anna I-PERSON\n", ENTITIES, ":1: unknown tag 'I-PERSON'; the recipe's groups are ['PER', 'LOC']"),
        ("Anna\n", ENTITIES, ":1: token-classification needs a word and a tag"),
        ("sentence\tlabel\n", QUESTIONS, "not a SQuAD JSON file, as question-answering needs"),
        ('{"data": [{"title": "t"}]}', QUESTIONS, "not a SQuAD JSON file"),
        ("sentence\tlabel\n\xff", SENTIMENT, "not UTF-8 text"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_the_task_says_where_and_why(
    tmp_path: Path, content: str, task: Task, message: str
) -> None:
    file = tmp_path / "data"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError) as error:
        read_examples(file, task)
    assert message in str(error.value) and str(file) in str(error.value)


def squad(answers: list[dict[str, object]]) -> str:
    qa = {"id": "7", "question": "?", "answers": answers}
    return json.dumps({"data": [{"paragraphs": [{"context": "Anna lives.", "qas": [qa]}]}]})


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([], "question 7 has no answer; for SQuAD v2.0 set task.no_answer"),
        ([{"text": "lives", "answer_start": 4}], "answer 'lives' is not at 4"),
    ],
)
def test_squad_answers_are_checked(tmp_path: Path, answers: list[dict[str, object]], message: str) -> None:
    file = tmp_path / "q.json"
    file.write_text(squad(answers))
    with pytest.raises(DataError, match=message):
        read_examples(file, QUESTIONS)


def test_squad_v2_keeps_the_questions_without_an_answer(tmp_path: Path) -> None:
    file = tmp_path / "q.json"
    file.write_text(squad([]))
    (example,) = read_examples(file, Task("question-answering", no_answer=True))
    assert (example.id, example.answers) == ("7", ())


def test_sources_are_files_in_the_data_folder_or_sets_on_the_hub() -> None:
    assert find_source(Path("data"), "mnli/train.tsv") == Path("data/mnli/train.tsv")
    assert find_source(Path("data"), "hub:nyu-mll/glue:mnli:train") == "hub:nyu-mll/glue:mnli:train"


@pytest.mark.parametrize("key", ["context", "question"])
def test_half_a_surrogate_pair_in_squad_says_which_file_and_where(tmp_path: Path, key: str) -> None:
    file = tmp_path / "q.json"
    document = json.loads(squad([{"text": "lives", "answer_start": 5}]))
    paragraph = document["data"][0]["paragraphs"][0]
    (paragraph if key == "context" else paragraph["qas"][0])[key] = "Anna lives. \ud83d"
    file.write_text(json.dumps(document))
    expected = rf"{file}: half a surrogate pair.* at the end of 'Anna lives\. \\ud83d'"
    with pytest.raises(DataError, match=expected):
        read_examples(file, QUESTIONS)
    if key == "context":
        with pytest.raises(DataError, match=expected):
            read_contexts(file)


def test_a_missing_file_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file; give the folder that holds it with --data"):
        read_examples(tmp_path / "none", QUESTIONS)


def test_articles_of_a_source_are_left_out_of_training(tmp_path: Path) -> None:
    def article(source: str | None, number: int) -> dict[str, object]:
        questions = [{"id": f"{source}-{number}", "question": "who?", "answers": [{"text": "mary", "answer_start": 0}]}]
        paragraphs = [{"context": "mary was here", "qas": questions}]
        return {"paragraphs": paragraphs} | ({"source": source} if source else {})

    articles = [article(source, i) for i, source in enumerate(("wiki", "shop", None, "shop", "news"))]
    (tmp_path / "train.json").write_text(json.dumps({"data": articles}))
    task = Task("question-answering")

    def kept(*names: str, limit: int = 0) -> list[str]:
        data = Data("x", "train.json", "dev.json", leave_out=names, train_limit=limit)
        found = read_training(tmp_path, task, data)
        return [example.id for example in found if isinstance(example, QuestionExample)]

    assert kept() == ["wiki-0", "shop-1", "None-2", "shop-3", "news-4"]
    assert kept("shop") == ["wiki-0", "None-2", "news-4"]
    assert kept("shop", "wiki", limit=1) == ["None-2"]
    with pytest.raises(DataError, match=r'"source": "shops", as data\.leave_out says; found: news, shop, wiki'):
        kept("shops")
    (tmp_path / "train.json").write_text(json.dumps({"data": [article("shop", 0)]}))
    with pytest.raises(DataError, match="leaves nothing to train on"):
        kept("shop")
