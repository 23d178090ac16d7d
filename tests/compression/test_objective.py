import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from compression.checkpoint import CheckpointError, load_model
from compression.encode import IGNORED, Window
from compression.objective import (
    Batch,
    batch_of,
    collate,
    counts,
    distillation_loss,
    hidden_distance,
    output_of,
    task_loss,
)
from compression.recipe import Task
from tests.compression import tiny


def batch(attended: list[list[int]], targets: list[list[int]]) -> Batch:
    ids = np.zeros((3, *np.shape(attended)), np.int64)
    ids[2] = attended
    return batch_of(ids, np.array(targets), torch.device("cpu"))


def test_kl_equals_the_closed_form_for_two_classes() -> None:
    # softmax((a, 0) / T) = (p, 1 - p) with p = 1 / (1 + exp(-a / T)).
    a, b, t = 1.5, -0.5, 2.0
    p, q = 1 / (1 + math.exp(-a / t)), 1 / (1 + math.exp(-b / t))
    expected = t * t * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
    loss = distillation_loss(
        "text-classification", torch.tensor([[b, 0.0]]), torch.tensor([[a, 0.0]]), batch([[1]], [[0]]), t
    )
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_divergence_of_label_sets_is_the_mean_of_each_labels() -> None:
    # Two classes with logits (z, 0) are one label with logit z.
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    many = batch_of(np.ones((3, 3, 1), np.int64), np.zeros((3, 4), np.float32), torch.device("cpu"))
    loss = distillation_loss("text-classification", student, teacher, many, 2.0)
    pairs = [torch.stack((z.flatten(), torch.zeros(12)), dim=1) for z in (student, teacher)]
    expected = distillation_loss("text-classification", *pairs, batch([[1]] * 12, [[0]] * 12), 2.0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert distillation_loss("text-classification", teacher, teacher, many, 2.0).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "question-answering"])
def test_a_student_equal_to_its_teacher_has_no_divergence_whatever_the_padding_holds(task: str) -> None:
    torch.manual_seed(0)
    shape = (2, 3) if task == "text-classification" else (2, 4, 2)
    teacher = torch.randn(shape)
    student = teacher.clone()
    one = batch([[1, 1, 1, 0], [1, 1, 0, 0]], [[0, 0, IGNORED, IGNORED], [1, 1, IGNORED, IGNORED]])
    if len(shape) == 3:
        student[0, 3], student[1, 2:] = 1e3, -1e3
    assert distillation_loss(task, student, teacher, one, 2.0).item() == pytest.approx(0.0, abs=1e-6)
    assert distillation_loss(task, student + torch.randn(shape), teacher, one, 2.0).item() > 0.01


def test_question_loss_never_looks_at_padding() -> None:
    logits = torch.zeros(1, 4, 2)
    logits[0, 3] = 100.0
    loss = task_loss("question-answering", logits, batch([[1, 1, 1, 0]], [[1, 2]]))
    assert loss.item() == pytest.approx(math.log(3))


def test_token_loss_is_the_mean_over_labelled_tokens() -> None:
    logits = torch.randn(2, 3, 5)
    targets = [[IGNORED, 4, IGNORED], [0, 1, IGNORED]]
    expected = -functional.log_softmax(logits, -1)[[0, 1, 1], [1, 0, 1], [4, 0, 1]].mean()
    assert task_loss("token-classification", logits, batch([[1] * 3] * 2, targets)).item() == pytest.approx(
        expected.item()
    )


def test_what_is_counted_on_the_host_is_what_the_tensors_say() -> None:
    tagged = collate([window(3, [IGNORED, 1, IGNORED]), window(5, [IGNORED, 0, 2, 1, IGNORED])], torch.device("cpu"))
    assert tagged.lengths.tolist() == tagged.attended.sum(dim=1).tolist() == [3, 5]
    assert tagged.given.tolist() == (tagged.targets != IGNORED).tolist()
    assert counts("token-classification", tagged) == {"task_loss": 4, "teacher_loss": 8, "hidden_loss": 8}
    assert counts("text-classification", batch([[1, 1, 0], [1, 1, 1]], [[1], [IGNORED]])) == {
        "task_loss": 1,
        "teacher_loss": 2,
        "hidden_loss": 5,
    }


def test_hidden_states_of_padding_do_not_count() -> None:
    states = [tuple(torch.randn(2, 4, 6) for _ in range(3)) for _ in range(2)]
    one = batch([[1, 1, 1, 0], [1, 1, 0, 0]], [[0], [0]])
    real = one.attended.bool()
    expected = sum(
        (functional.normalize(a[real], dim=-1) - functional.normalize(b[real], dim=-1)).square().sum(-1).mean()
        for a, b in list(zip(*states, strict=True))[1:]
    )
    assert hidden_distance(*states, one.attended).item() == pytest.approx(float(expected) / 2, rel=1e-5)


def window(length: int, targets: list[int]) -> Window:
    ids = np.arange(5, 5 + length, dtype=np.int32)
    return Window(0, ids, np.zeros_like(ids), np.array(targets, np.int32), np.empty(0, np.int32))


@pytest.mark.parametrize(
    ("task", "targets"),
    [
        ("text-classification", [1]),
        ("question-answering", [2, 3]),
        ("token-classification", [IGNORED, 1, 0, 2, IGNORED]),
    ],
)
def test_losses_agree_with_transformers_own(tmp_path: Path, task: str, targets: list[int]) -> None:
    labels = () if task == "question-answering" else ("A", "B")
    model = load_model(str(tiny.checkpoint(tmp_path)), Task(task, labels=labels, window=32)).train(False)
    one = collate([window(5, targets)], torch.device("cpu"))
    names = {"start_positions": one.targets[:, 0], "end_positions": one.targets[:, -1]}
    given = (
        names if task == "question-answering" else {"labels": one.targets if len(targets) > 2 else one.targets[:, 0]}
    )
    theirs = model(input_ids=one.ids, attention_mask=one.attended, token_type_ids=one.types, **given).loss
    assert task_loss(task, output_of(model, one).logits, one).item() == pytest.approx(theirs.item(), rel=1e-5)


def test_label_sets_are_collated_as_they_are_also_where_labels_and_tokens_are_as_many() -> None:
    windows = [window(length, [0]) for length in (3, 5)]
    labels = [np.array(row, np.float32) for row in ([1, 0, 1], [0, 0, 0])]
    made = collate(
        [dataclasses.replace(w, targets=t) for w, t in zip(windows, labels, strict=True)], torch.device("cpu")
    )
    assert made.targets.tolist() == [[1, 0, 1], [0, 0, 0]]
    logits = torch.tensor([[2.0, -1.0, 0.0], [0.0, 1.0, -3.0]])
    signs = torch.tensor([[1, -1, 1], [-1, -1, -1]])
    expected = torch.log1p(torch.exp(-signs * logits)).mean()
    assert task_loss("text-classification", logits, made).item() == pytest.approx(expected.item())


def test_collate_pads_right() -> None:
    made = collate([window(3, [1]), window(5, [0])], torch.device("cpu"))
    assert made.attended.tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert made.ids[0].tolist() == [5, 6, 7, 0, 0] and made.targets.tolist() == [[1], [0]]


def test_hidden_distance_by_hand_and_layers_are_spread() -> None:
    x, y = torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[0.0, 5.0]]])
    attended = torch.ones(1, 1)
    # Unit vectors at a right angle are sqrt(2) apart; length does not count; the embeddings (first) are left out.
    assert hidden_distance((x, x), (y, 2 * x), attended).item() == pytest.approx(0.0, abs=1e-6)
    assert hidden_distance((x, x), (x, y), attended).item() == pytest.approx(2.0)
    # Two layers against four: 1 with 2, 2 with 4.
    assert hidden_distance((x, x, x), (y, y, x, y, x), attended).item() == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(CheckpointError, match="the student is 2 wide, its teacher 3"):
        hidden_distance((x,), (torch.zeros(1, 1, 3),), attended)


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "question-answering"])
def test_hidden_states_come_with_the_logits_where_they_are_asked_for(tmp_path: Path, task: str) -> None:
    labels = () if task == "question-answering" else ("one", "two")
    model = load_model(str(tiny.checkpoint(tmp_path, layers=3)), Task(task, labels, window=32))
    ids = torch.tensor([[2, 7, 8, 3]])
    arrays = np.array([ids.tolist(), [[0] * 4], [[1] * 4]])
    one = batch_of(arrays, np.zeros((1, 1), np.int64), torch.device("cpu"))
    found = output_of(model, one, hidden=True)
    assert [state.shape for state in found.hidden] == [(1, 4, 32)] * 4
    assert torch.equal(found.hidden[-1], model.base_model(ids).last_hidden_state)
    assert torch.equal(found.logits, output_of(model, one).logits) and output_of(model, one).hidden == ()
