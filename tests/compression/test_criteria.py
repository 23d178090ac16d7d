from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compression import criteria, loop, prune, train
from compression.checkpoint import encoder_matrices, load_model
from compression.patterns import pattern_of
from compression.recipe import Fisher, Prune, Training
from tests.compression.test_train import prepared

TRAINING = Training(epochs=3, learning_rate=3e-3, batch_size=16, dropout=0.1)
SETTINGS = {
    "magnitude": Prune(0.75, TRAINING, scope="global", pattern="1x4", update_every=4),
    "movement": Prune(0.75, TRAINING, criterion="movement", pattern="4x1", update_every=4),
    "obert": Prune(
        0.75, TRAINING, criterion="obert", scope="global", initial=0.5, at_epochs=(1, 2),
        fisher=Fisher(gradients=6, batch_size=4, block=16, damping=1e-4, recomputations=2),
    ),
}  # fmt: skip


def test_additive_costs_are_sums_over_the_sets() -> None:
    weight = torch.tensor([[1.0, -2, 3, -4]])
    assert criteria.magnitude_costs(weight, None, pattern_of("1x4")).tolist() == [[10.0]]
    assert criteria.magnitude_costs(weight, None, pattern_of("2:4")).tolist() == [[3.0, 4, 5, 5, 6, 7]]
    moved = torch.tensor([[0.5, -1, 0, 2]])
    assert criteria.movement_costs(weight, moved, pattern_of("unstructured")).flatten().tolist() == [0.5, -1, 0, 2]


def test_movement_adds_up_weight_times_gradient_by_hand() -> None:
    matrices = {"m": nn.Linear(2, 1, bias=False)}
    optimizer = torch.optim.SGD(matrices["m"].parameters(), lr=0.1)
    matrices["m"].weight.data = torch.tensor([[1.0, 2.0]])
    scores: dict[str, Tensor] = {}
    for _ in range(2):
        optimizer.zero_grad()
        (matrices["m"].weight * torch.tensor([[3.0, -1.0]])).sum().backward()
        criteria.add_movement(scores, matrices)
        optimizer.step()
    # Step 1: -(1 * 3), -(2 * -1); then the weights are 0.7 and 2.1.
    assert scores["m"].flatten().tolist() == pytest.approx([-3 - 0.7 * 3, 2 + 2.1])
    settings = Prune(0.5, TRAINING, criterion="movement")
    masks = prune.choose_masks(matrices, {}, 0.5, settings, scores)
    assert masks["m"].tolist() == [[False, True]], "the weight that moved towards zero goes"


class _Stop(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("criterion", SETTINGS)
def test_a_run_reaches_its_sparsity_and_resumes_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, criterion: str
) -> None:
    """Stopped between two updates: what the second one is judged by must have been kept or be drawn again alike."""
    monkeypatch.setattr(train, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(train, "SAVE_COST", 0.0)
    settings = SETTINGS[criterion]
    results: list[dict[str, Tensor]] = []
    for stop in (False, True):
        one = prepared(tmp_path, name=f"run-{stop}")
        if stop:
            with monkeypatch.context() as patch, pytest.raises(_Stop):
                patch.setattr(train, "append_metrics", _stop_at(15))
                run_once(one, settings)
        model, masks = run_once(one, settings)
        results.append({**model.state_dict(), **{f"mask {name}": mask for name, mask in masks.items()}})
        assert prune.mask_sparsity(masks) == pytest.approx(0.75, abs=1e-3)
        for name, mask in masks.items():
            assert torch.equal(encoder_matrices(model)[name].weight == 0, ~mask)
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def run_once(one: object, settings: Prune) -> tuple[nn.Module, prune.Masks]:
    torch.manual_seed(4)
    model = load_model(one.recipe.checkpoint, one.recipe.task, dropout=0.1)  # type: ignore[attr-defined]
    stage = loop.Stage(
        "prune", one.recipe.task.name, TRAINING, 1, one.train_windows, encoder_matrices(model), {}, settings  # type: ignore[attr-defined]
    )  # fmt: skip
    return model, train.train(model, stage, one.folder)  # type: ignore[attr-defined]


def _stop_at(step: int) -> object:
    real = train.append_metrics

    def append(folder: Path, line: dict[str, object]) -> None:
        if int(str(line.get("step", 0))) >= step:
            raise _Stop
        real(folder, line)

    return append
