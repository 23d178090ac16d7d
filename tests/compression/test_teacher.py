"""The teacher's logits are computed once, however often that is interrupted, and stay the same bytes."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from compression import processes, teacher
from compression.checkpoint import load_model
from compression.encode import Window
from compression.evaluate import torch_predictor
from compression.read_recipe import parse_recipe
from compression.recipe import Recipe
from compression.run import Prepared, prepare
from tests.compression import tiny


def prepared(tmp_path: Path, task: str) -> Prepared:
    text = tiny.recipe(task, tiny.checkpoint(tmp_path / "base"), tmp_path)
    recipe = parse_recipe(text)
    assert isinstance(recipe, Recipe)
    return prepare(recipe, text, tmp_path, tmp_path / "run")


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_logits_that_were_computed_are_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    monkeypatch.setattr(processes, "windows_at_once", lambda: 8)
    monkeypatch.setattr(teacher, "PART_BATCHES", 3)
    one = prepared(tmp_path, task)
    windows, model = one.train_windows[:60], load_model(one.recipe.checkpoint, one.recipe.task)  # 8 batches, 3 parts
    whole, stopped = tmp_path / "whole" / "t.safetensors", tmp_path / "stopped" / "t.safetensors"
    for path in (whole, stopped):
        path.parent.mkdir()
    teacher.kept_teacher(model, windows, whole)
    asked: list[int] = []

    def watched(model: Any) -> Any:
        predict = torch_predictor(model)

        def predicted(some: Sequence[Window]) -> Any:
            asked.append(len(some))
            return predict(some)

        return tiny.stopping(predicted, 4)

    monkeypatch.setattr(teacher, "torch_predictor", watched)
    for batches in (4, 4, 2):  # the first of the next part is lost each time
        asked.clear()
        with pytest.raises(tiny.Stop) if batches == 4 else nullcontext():
            teacher.kept_teacher(model, windows, stopped)
        assert len(asked) == batches
    for path in (whole, stopped):
        assert [file.name for file in path.parent.iterdir()] == [path.name], "no part is left"
    assert stopped.read_bytes() == whole.read_bytes()
    expected = torch_predictor(model)(windows[:1])[0]
    found = load_file(whole)["logits"]
    np.testing.assert_allclose(found[: len(np.atleast_2d(expected))], np.atleast_2d(expected), rtol=1e-4, atol=1e-5)


def test_parts_that_a_kill_left_beside_the_whole_go(tmp_path: Path) -> None:
    one = prepared(tmp_path, "text-classification")
    path = tmp_path / "t.safetensors"
    model = load_model(one.recipe.checkpoint, one.recipe.task)
    teacher.kept_teacher(model, one.train_windows, path)
    before = path.read_bytes()
    left = tmp_path / f"t.parts-{processes.windows_at_once()}"
    left.mkdir()
    (left / "0.safetensors").write_bytes(b"")
    teacher.kept_teacher(model, one.train_windows, path)
    assert path.read_bytes() == before and not left.exists()
