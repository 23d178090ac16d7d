import pytest
import torch
from torch import nn

from compression import prune
from compression.recipe import Prune, Training

TRAINING = Training(epochs=1, learning_rate=1e-3)


def test_masks_are_per_matrix_and_zeros_are_exact() -> None:
    torch.manual_seed(0)
    matrices = {"small": nn.Linear(40, 10), "large": nn.Linear(40, 10)}
    with torch.no_grad():
        matrices["small"].weight.mul_(1e-3)
    masks = prune.magnitude_masks(matrices, 0.9)
    prune.apply_masks(matrices, masks)
    assert prune.sparsity(matrices) == {"small": pytest.approx(0.9), "large": pytest.approx(0.9)}
    assert prune.overall_sparsity(matrices) == pytest.approx(0.9)
    assert prune.mask_sparsity(masks) == pytest.approx(0.9)
    assert prune.mask_sparsity({}) == 0.0


def test_what_is_dropped_becomes_plus_zero_whatever_it_was_and_the_rest_keeps_its_bits() -> None:
    values = torch.tensor([[-1.5, float("nan"), float("inf"), -0.0, 1e-42, -2.0, float("nan"), 3e38]])
    mask = torch.tensor([[False, False, False, False, True, True, True, True]])
    layer = nn.Linear(8, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(values)
    layer.weight.grad = values.clone()
    wanted = torch.where(mask, values, 0.0).view(torch.int32)
    prune.mask_gradients({"m": layer}, {"m": mask})
    prune.apply_masks({"m": layer}, {"m": mask})
    assert torch.equal(layer.weight.grad.view(torch.int32), wanted)
    assert torch.equal(layer.weight.detach().view(torch.int32), wanted)


@pytest.mark.parametrize("pattern", ["unstructured", "1x4", "4x1", "2:4"])
def test_a_pruned_weight_never_comes_back(pattern: str) -> None:
    torch.manual_seed(0)
    matrices = {"m": nn.Linear(16, 16)}
    settings = Prune(0.5, TRAINING, pattern=pattern)
    masks = prune.choose_masks(matrices, {}, 0.25, settings, {})
    with torch.no_grad():
        matrices["m"].weight[~masks["m"]] = 100.0  # were they judged again, they would stay
    later = prune.choose_masks(matrices, masks, 0.5, settings, {})
    assert not later["m"][~masks["m"]].any()
    assert prune.mask_sparsity(later) == pytest.approx(0.5)
    same = prune.choose_masks(matrices, later, 0.25, settings, {})
    assert torch.equal(same["m"], later["m"]), "nor does a lower sparsity bring it back"


@pytest.mark.parametrize("pattern", ["unstructured", "4x1", "2:4"])
def test_pruned_weights_stay_zero_through_adamw_with_momentum_and_decay(pattern: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(16, 16)
    matrices = {"m": layer}
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.1)
    masks: prune.Masks = {}
    for step in range(12):
        if step == 4:  # moments exist by now
            masks = prune.magnitude_masks(matrices, 0.5, pattern=pattern)
            prune.apply_masks(matrices, masks)
        layer(torch.randn(8, 16)).square().mean().backward()
        prune.mask_gradients(matrices, masks)
        optimizer.step()
        optimizer.zero_grad()
        prune.apply_masks(matrices, masks)
    assert torch.equal(layer.weight == 0, ~masks["m"])


def test_a_weight_set_aside_competes_with_its_old_value() -> None:
    layer = nn.Linear(4, 1, bias=False)
    matrices = {"m": layer}
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -3.0, 2.0, 4.0]]))
    masks = prune.magnitude_masks(matrices, 0.5)
    dropped = prune.set_aside(matrices, masks)
    prune.apply_masks(matrices, masks)
    assert layer.weight.tolist() == [[0.0, -3.0, 0.0, 4.0]] and dropped["m"].tolist() == [[1.0, 0.0, 2.0, 0.0]]
    with torch.no_grad():
        layer.weight[0, 3] = 1.5  # training made a survivor small
    prune.put_back(matrices, dropped)
    assert layer.weight.tolist() == [[1.0, -3.0, 2.0, 1.5]]
    assert prune.magnitude_masks(matrices, 0.5)["m"].tolist() == [[False, True, True, False]]
