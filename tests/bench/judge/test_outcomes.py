"""Outcomes: the metric is the trainer's, the confidence is the service's."""

from pathlib import Path

import numpy as np
import pytest

from bench.judge.outcomes import Outcomes, answer_confidence, judge
from bench.judge.subject import Subject
from compression import evaluate
from compression.encode import Window
from compression.examples import QuestionExample, TaggedExample, TextExample
from compression.verify import predict_all
from service.loading import load_model
from service.pipeline import TASKS, answer_now
from service.schemas import Answer, Entity, Label
from tests.bench.judged_data import TASKS as NAMES
from tests.bench.judged_data import write_artifacts, write_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judged")
    write_data(folder / "data")
    write_artifacts(folder / "models")
    return folder


def subject(folder: Path, name: str) -> Subject:
    return Subject(folder / "models" / name, folder / "data")


@pytest.mark.parametrize(
    ("name", "metric", "factor"), [("ner", "entity_f1", 100), ("qa", "f1", 1), ("sentiment", "accuracy", 100)]
)
def test_the_score_is_the_trainers(folder: Path, name: str, metric: str, factor: float) -> None:
    one = subject(folder, name)
    answered = one.answered(one.sets[0])
    windows = one.encoder.windows(answered.examples)
    report = evaluate.score(windows, predict_all(one.predict, windows), answered.examples, one.task)
    assert answered.outcomes.score == pytest.approx(factor * report.scores[metric], abs=1e-9)
    assert 0 < answered.outcomes.score < 100
    tokens = np.bincount([window.example for window in windows], [len(window.ids) for window in windows])
    assert answered.outcomes.tokens.tolist() == tokens.tolist()


@pytest.mark.parametrize("name", list(NAMES))
def test_the_confidence_is_the_services_score(folder: Path, name: str) -> None:
    one = subject(folder, name)
    answered = one.answered(one.sets[0])
    model, task = load_model(folder / "models" / name, threads=1), TASKS[NAMES[name]]
    compared = 0
    for number, example in enumerate(answered.examples):
        mine = [decision for decision in answered.outcomes.decisions if decision.example == number]
        if isinstance(example, QuestionExample):
            text: object = {"question": example.question, "context": example.context}
        else:
            text = example.text if isinstance(example, TextExample) else " ".join(example.words)
        entries, _ = answer_now(task, model, task.item.validate_python(text), task.parameters())
        if name != "ner":
            entries = entries[:1]
        found = [_said(entry, example) for entry in entries]
        # One tokenizer's word is another's: the service sees the entity's words in the same places.
        assert [said for said, _ in found] == [
            said.found if name != "ner" else f"{said.found} {said.place}" for said in mine
        ]
        assert [score for _, score in found] == pytest.approx([said.confidence for said in mine], rel=1e-4)
        compared += len(mine)
    assert compared >= 20


def _said(entry: Answer | Entity | Label, example: object) -> tuple[str, float]:
    if isinstance(entry, Answer):
        return f"{entry.start}-{entry.end}", entry.score
    if isinstance(entry, Label):
        return entry.label, entry.score
    assert isinstance(example, TaggedExample)
    text = " ".join(example.words)
    first, last = (text[:place].count(" ") + 1 for place in (entry.start, entry.end))
    return f"{entry.entity_group} {first}-{last}", entry.score


def test_tokens_of_one_character_are_tokens_of_their_own() -> None:
    """BERT's normalizer takes Hangul apart: several tokens then have the same code points."""
    words = [(0, 1), (2, 3), (2, 3), (2, 3), (4, 5), (4, 5)]
    places = np.array([(*span, *span, number) for number, span in enumerate(words)], np.int32)
    special = np.full((1, 5), -1, np.int32)
    parts = [np.concatenate((special, places[start : start + 4])) for start in (0, 2)]
    ids = np.zeros(5, np.int32)
    windows = [Window(0, ids, ids, ids[:2], part) for part in parts]
    (sure,) = answer_confidence(windows, [np.zeros((5, 2), np.float32)] * 2, 1, longest=1)
    assert sure == pytest.approx(1 / len(words)), "all tokens are alike"


def test_questions_about_one_paragraph_are_drawn_together(folder: Path) -> None:
    one = subject(folder, "qa")
    together = one.answered(one.sets[0]).outcomes.together
    assert together.tolist() == np.arange(len(together) // 2).repeat(2).tolist()


def test_an_entity_of_a_group_that_does_not_count_is_nobodys_error(folder: Path) -> None:
    one = subject(folder, "ner")
    examples = one.answered(one.sets[0]).examples
    windows = one.encoder.windows(examples)
    logits = predict_all(one.predict, windows)

    def judged(*groups: str) -> Outcomes:
        return judge(windows, logits, examples, one.task, frozenset(groups))

    parts = [judged(group) for group in one.task.labels]
    whole = judged(*one.task.labels)
    assert sum(part.gained.sum() for part in parts) == whole.gained.sum() > 0
    assert sum(part.possible.sum() for part in parts) == whole.possible.sum()
    assert {decision.found for decision in parts[0].decisions} == {"PER"}


def test_an_error_says_where_and_what_without_a_word_of_the_text(folder: Path) -> None:
    for name in NAMES:
        one = subject(folder, name)
        answered = one.answered(one.sets[0])
        words = {"paris", "london", "john", "mary", "where"}
        for said in answered.outcomes.decisions:
            assert not words & set(f"{said.place} {said.expected} {said.found}".split())
