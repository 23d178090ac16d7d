"""Texts without labels: found in plain text, cut into windows without targets, and followed by the sparse model."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from typer.testing import CliRunner

from compression import plan, run
from compression.checkpoint import load_model
from compression.cli import app
from compression.encode import IGNORED, Encoder
from compression.examples import DataError, TaggedExample, TextExample
from compression.objective import Batch, batch_of, collate, output_of, task_loss
from compression.read_recipe import parse_recipe
from compression.recipe import Data, Recipe, Task, Unlabelled
from compression.surgeon import Patient, operate
from compression.train import read_metrics
from compression.unlabelled import PER_DOCUMENT, read_sentences, read_unlabelled, split_sentences
from tests.compression import tiny

DOCUMENTS = [
    f"Who went to {place} in the film? {person} lives in {place} and {place}. The story was {word} and {word}."
    for place in tiny.PLACES
    for person in tiny.PEOPLE
    for word in (*tiny.POSITIVE, *tiny.NEGATIVE)
]


@given(st.text(st.sampled_from("aB1 .!?\"')(\u00a0é-")))
def test_sentences_hold_all_of_a_paragraph_but_white_space(paragraph: str) -> None:
    pieces = split_sentences(paragraph)
    assert "".join("".join(pieces).split()) == "".join(paragraph.split())
    assert all(piece == piece.strip() and piece for piece in pieces)


@pytest.mark.parametrize(
    ("paragraph", "sentences"),
    [
        ("It rained. Then not!  Why? 12 people know.", ["It rained.", "Then not!", "Why?", "12 people know."]),
        ('He said "no." She left.', ['He said "no."', "She left."]),
        ("It costs 3.5 euros, e.g. in Oslo.", ["It costs 3.5 euros, e.g. in Oslo."]),
        ("", []),
    ],
)  # fmt: skip
def test_sentences_by_hand(paragraph: str, sentences: list[str]) -> None:
    assert split_sentences(paragraph) == sentences


def test_few_sentences_of_each_document_in_order_and_the_same_every_time(tmp_path: Path) -> None:
    documents = ["\n".join(f"Document {d} has sentence {s} here." for s in range(30)) for d in range(4)]
    path = tmp_path / "a.txt"
    path.write_text("A heading without an end\n" + "\n\n".join(documents) + "\n\nShort.\n")
    found = read_sentences([path], 3 * PER_DOCUMENT, seed=1)
    assert found == read_sentences([path], 3 * PER_DOCUMENT, seed=1)
    assert found != read_sentences([path], 3 * PER_DOCUMENT, seed=2)
    places = [tuple(int(word) for word in sentence.split() if word.isdigit()) for sentence in found]
    assert [document for document, _ in places] == [d for d in range(3) for _ in range(PER_DOCUMENT)]
    assert all(a < b for a, b in pairwise(places))
    with pytest.raises(DataError, match=rf"a\.txt: {4 * PER_DOCUMENT} sentences, at most .* asks for 999"):
        read_sentences([path], 999, seed=1)


def test_contexts_of_a_squad_file_are_documents_and_its_questions_are_not_read(tmp_path: Path) -> None:
    def article(source: str, contexts: Sequence[str]) -> dict[str, Any]:
        return {
            "source": source,
            "paragraphs": [{"context": text, "qas": [{"question": "Why so?"}]} for text in contexts],
        }

    films = ["The film was long and loud. Nobody slept in it at all.", "A second context of this source ends here."]
    towns = ["The old town stands on a river in the hills."]
    squad, more = tmp_path / "train.json", tmp_path / "more.txt"
    squad.write_text(json.dumps({"data": [article("towns", towns), article("films", [*films, films[0]])]}))
    more.write_text("What stands in the second file comes last.\n")
    sentences = ["The film was long and loud.", "Nobody slept in it at all.", films[1]]
    assert read_sentences([squad, more], 4, 1, ("films",)) == [*sentences, more.read_text().strip()]
    assert read_sentences([squad], 4, 1) == [*towns, *sentences]
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"data": [article("rivers", ["The longest river of them all is the Nile."])]}))

    def asked(*sources: str, files: tuple[str, ...] = ("train.json", "other.json")) -> list[str]:
        return read_unlabelled(tmp_path, Data("made up", "", "", unlabelled=Unlabelled(files, 1, sources)), 1)

    assert asked("rivers") == ["The longest river of them all is the Nile."], "which file has a source does not matter"
    with pytest.raises(DataError, match=r'no article has "source": "lakes", .*found: films, rivers, towns'):
        asked("films", "lakes")
    with pytest.raises(DataError, match=r"gone\.txt: no such file"):
        asked("films", files=("train.json", "gone.txt"))
    for content, message in (
        ('{"data": [{"paragraphs": [{}]}]}', "not a SQuAD JSON file, as data.unlabelled needs: KeyError"),
        ("[1, 2]", "not a SQuAD JSON file"),
    ):
        squad.write_text(content)
        with pytest.raises(DataError, match=message):
            read_sentences([squad], 1, 1)
    squad.write_bytes(b"\xff{}")
    with pytest.raises(DataError, match=r"train\.json: not UTF-8"):
        read_sentences([squad], 1, 1)
    with pytest.raises(DataError, match=r"films\.json: no such file"):
        read_sentences([tmp_path / "films.json"], 1, 1)
    more.rename(tmp_path / "more.csv")
    with pytest.raises(DataError, match=r"more\.csv: plain text must end in"):
        read_sentences([tmp_path / "more.csv"], 1, 1)


def test_windows_are_those_of_training_without_targets() -> None:
    words = " ".join(tiny.PLACES * 9)
    tokenizer = tiny.tokenizer()
    text = Encoder(tokenizer, Task("text-classification", ("a", "b"), window=16, stride=4), uses_types=True)
    several = Encoder(
        tokenizer, Task("text-classification", ("a", "b", "c"), window=16, stride=4, multi_label=True), True
    )
    tagged = Encoder(tokenizer, Task("token-classification", ("LOC",), window=16, stride=4), uses_types=True)
    labelled = tagged.windows([TaggedExample(tuple(words.split()), ("B-LOC",) * len(words.split()))])
    for encoder, wanted, shape in (
        (text, text.windows([TextExample(words, 1)]), 1),
        (several, several.windows([TextExample(words, (1,))]), 3),
        (tagged, labelled, None),
    ):
        found = encoder.unlabelled([words])
        assert [window.ids.tolist() for window in found] == [window.ids.tolist() for window in wanted]
        for one, other in zip(found, wanted, strict=True):
            assert one.targets.dtype == other.targets.dtype
            assert one.targets.tolist() == [IGNORED] * (shape or len(one.ids))


@pytest.mark.parametrize("task", ["text-classification", "label-sets", "token-classification"])
def test_what_has_no_label_changes_no_task_loss(task: str) -> None:
    torch.manual_seed(0)
    rows, tokens, classes = 3, 4, 2
    shape = (rows, tokens, classes) if task == "token-classification" else (rows, classes)
    targets = np.ones({"text-classification": (rows, 1), "label-sets": shape}.get(task, (rows, tokens)), np.int64)
    logits = torch.randn(shape, requires_grad=True)

    def batch(targets: NDArray[np.int64]) -> Batch:
        ids = np.ones((3, len(targets), tokens), np.int64)
        if task == "label-sets":
            return batch_of(ids, targets.astype(np.float32), torch.device("cpu"))
        return batch_of(ids, targets, torch.device("cpu"))

    targets[2] = IGNORED
    name = tiny.KINDS.get(task, task)
    mixed = task_loss(name, logits, batch(targets))
    torch.testing.assert_close(mixed, task_loss(name, logits[:2], batch(targets[:2])))
    none = task_loss(name, logits[2:], batch(targets[2:]))
    assert none.item() == 0.0
    (slope,) = torch.autograd.grad(mixed + none, logits)
    assert (slope[2] == 0).all() and slope[:2].abs().sum() > 0


def recipe_with(tmp_path: Path, task: str, *, sentences: int = 0) -> str:
    """A recipe that learns from its teacher alone, with so many sentences of text of its own words."""
    text = tiny.recipe(task, tiny.checkpoint(tmp_path / "base"), tmp_path, epochs=6)
    for stage in ("prune", "quantize"):
        text = text.replace(
            f"[{stage}.training]", f"[{stage}.distillation]\ntask = 0.0\nteacher = 1.0\n\n[{stage}.training]"
        )
    if sentences:
        path = tmp_path / "more.txt"
        path.write_text("\n\n".join(DOCUMENTS))
        more = f'unlabelled = {{files = ["more.txt"], sentences = {sentences}}}'
        text = text.replace('dataset = "made up"', f'dataset = "made up"\n{more}')
    return text


def distance(one: run.Prepared) -> float:
    """How far the sparse model's logits are from its teacher's, on texts without labels."""
    batch = collate(one.unlabelled, torch.device("cpu"))
    names = [str(one.folder / name) for name in ("teacher", "pruned")]
    with torch.no_grad():
        models = [load_model(name, one.recipe.task, trains=False) for name in names]
        teacher, student = (output_of(model, batch).logits for model in models)
    real = batch.attended.bool() if one.recipe.task.name == "token-classification" else slice(None)
    return float((teacher - student)[real].abs().mean())


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_the_sparse_model_follows_its_teacher_on_texts_without_labels(tmp_path: Path, task: str) -> None:
    apart: dict[int, float] = {}
    for sentences in (0, 200):
        folder = tmp_path / str(sentences)
        folder.mkdir()
        recipe = folder / "recipe.toml"
        recipe.write_text(recipe_with(folder, task, sentences=sentences))
        result = CliRunner().invoke(
            app, ["run", str(recipe), "--data", str(folder), "--run-folder", str(folder / "run")]
        )
        assert result.exit_code == 0, result.output
        read = parse_recipe(recipe_with(folder, task, sentences=200))
        assert isinstance(read, Recipe)
        # With the texts, whatever the run had, to ask both models about them.
        one = replace(run.prepare(read, recipe.read_text(), folder, folder / "asked"), folder=folder / "run")
        assert len(one.unlabelled) == 200 and len(one.windows_of(None)) == len(one.train_windows)
        apart[sentences] = distance(one)
        found = {line["stage"]: line["step"] + 1 for line in read_metrics(one.folder) if "step" in line}
        rounds = plan.plan_rounds(one if sentences else replace(one, unlabelled=()))
        assert found == {planned.name: planned.steps for planned in rounds}
    assert apart[200] < 0.6 * apart[0]


def test_the_surgeon_measures_with_labelled_windows_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = recipe_with(tmp_path, "token-classification", sentences=200)
    text = text.replace("[prune]", '[prune]\ncriterion = "obert"\nfisher = {gradients = 4, batch_size = 4}')
    one = run.prepare(parse_recipe(text), text, tmp_path, tmp_path / "run")  # type: ignore[arg-type]
    patients: list[Patient] = []

    def noted(patient: Patient, *arguments: Any) -> Any:
        patients.append(patient)
        return operate(patient, *arguments)

    monkeypatch.setattr("compression.loop.operate", noted)
    run.fit_pruned(one, run.fit_teacher(one))
    assert len(one.train_windows) < len(one.windows_of(one.recipe.prune.distillation))  # type: ignore[union-attr]
    assert patients[0].lengths == [len(window.ids) for window in one.train_windows]
    losses = [patients[0].loss([number]).item() for number in range(len(one.train_windows))]
    assert min(losses) > 0, "each has labels to be wrong about"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('files = ["more.txt"]', "files = []", "'data.unlabelled.files' is []; it must be at least one file"),
        ("sentences = 9", "sentences = 0", "'data.unlabelled.sentences' is 0; it must be >= 1"),
        ("teacher = 1.0", "teacher = 0.0", "task + teacher"),
        ("task = 0.0\nteacher = 1.0", "task = 1.0\nteacher = 0.0", "'prune.distillation.teacher' is 0.0; it must be"),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = recipe_with(tmp_path, "text-classification", sentences=9)
    assert old in text
    with pytest.raises(ValueError, match="(?s)" + message.replace("[", r"\[").replace("+", r"\+")):
        parse_recipe(text.replace(old, new, 1))


def test_check_says_how_many_there_are_and_counts_their_steps(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(recipe_with(tmp_path, "text-classification", sentences=200))
    result = CliRunner().invoke(app, ["check", str(recipe), "--data", str(tmp_path)])
    assert result.exit_code == 0, result.output
    labelled = len((tmp_path / "text-classification.data").read_text().splitlines()) - 1
    assert f"training   {labelled:>9,} windows" in result.output and "unlabelled       200 windows" in result.output
    assert f"prune      {6 * -(-(labelled + 200) // 16):>9,} steps" in result.output
    assert f"teacher    {6 * labelled // 16:>9,} steps" in result.output


@pytest.mark.parametrize("task", ["question-answering", "pairs"])
def test_tasks_of_two_texts_take_none(tmp_path: Path, task: str) -> None:
    with pytest.raises(ValueError, match=r"'data\.unlabelled' .* absent: it is for text and token classification"):
        parse_recipe(recipe_with(tmp_path, task, sentences=9))


def test_a_missing_file_ends_the_run_at_once_with_one_line(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(recipe_with(tmp_path, "text-classification", sentences=9).replace("more.txt", "mroe.txt"))
    result = CliRunner().invoke(
        app, ["run", str(recipe), "--data", str(tmp_path), "--run-folder", str(tmp_path / "run")]
    )
    assert result.exit_code == 2 and "mroe.txt: no such file" in result.output
    assert not (tmp_path / "run").exists()
