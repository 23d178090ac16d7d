import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import engine
from compression import loop, pretrain, prune, run, schedules, train
from compression.checkpoint import encoder_matrices, load_model
from compression.objective import Batch, Output
from compression.read_recipe import parse_recipe
from compression.recipe import Distillation, LanguageRecipe, Prune, RecipeError, Training
from compression.teacher import live_teacher
from tests.compression import tiny


def prepared(tmp_path: Path, task: str = "text-classification", epochs: float = 3, name: str = "run") -> run.Prepared:
    base = tiny.checkpoint(tmp_path / "base")
    text = tiny.recipe(task, base, tmp_path, epochs=epochs)
    return run.prepare(parse_recipe(text), text, tmp_path, tmp_path / name)


def stage(one: run.Prepared, model: torch.nn.Module, training: Training, masks: prune.Masks) -> loop.Stage:
    return loop.Stage(
        "prune", one.recipe.task.name, training, 1, one.train_windows, encoder_matrices(model), masks, one.recipe.prune
    )


def test_learning_rate_by_hand() -> None:
    training = Training(epochs=1, learning_rate=1.0, warmup=0.2)
    rates = [schedules.learning_rate(step, 10, training) for step in range(10)]
    assert rates == pytest.approx([1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


def test_cyclic_learning_rate_by_hand() -> None:
    cycles = {"schedule": "cyclic", "rewind_epochs": (1.0, 3.0), "lowest_rate": 0.2}
    training = Training(epochs=5, learning_rate=1.0, warmup=0.2, **cycles)  # type: ignore[arg-type]
    rates = [schedules.learning_rate(step, 10, training) for step in range(10)]
    assert rates == pytest.approx([1 / 3, 0.6, 1, 0.8, 0.6, 0.4, 1, 0.8, 0.6, 0.4])


def test_rewinding_learning_rate_by_hand() -> None:
    """N = 20, W = 2, P = 10, R = 4: teeth from 10/8 down, back up with each mask update, then down to the end."""
    training = Training(steps=20, learning_rate=0.8, warmup=0.1, schedule="rewinding")
    pruning = Prune(0.9, training, end=0.5, update_every=4)
    rates = [10 * schedules.learning_rate(step, 20, training, pruning) for step in range(20)]
    assert rates == pytest.approx([8 / 3, 16 / 3, 8, 7, 10, 9, 8, 7, 10, 9, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1])


def test_rewinding_learning_rate_with_the_published_numbers() -> None:
    training = Training(steps=100_000, learning_rate=5e-5, warmup=0.01, schedule="rewinding")
    pruning = Prune(0.9, training, end=0.5, update_every=1000, reselect_until=0.8)
    expected = {
        1_000: 50 / 49,
        1_999: 49_001 / 49_000,
        49_000: 50 / 49,
        50_000: 50 / 49,
        75_000: 25 / 49,
        99_999: 1 / 49_000,
    }
    for step, factor in expected.items():
        assert schedules.learning_rate(step, 100_000, training, pruning) == pytest.approx(5e-5 * factor), step


@pytest.mark.parametrize(
    ("until", "comes_back", "pattern", "scope"),
    [
        (0.0, False, "unstructured", "matrix"),
        (0.8, True, "unstructured", "matrix"),
        (0.8, True, "4x1", "global"),
        (0.8, True, "1:4", "matrix"),
    ],
)
def test_a_dropped_weight_comes_back_only_where_masks_are_reselected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: float, comes_back: bool, pattern: str, scope: str
) -> None:
    one = prepared(tmp_path)
    model = load_model(one.recipe.checkpoint, one.recipe.task)
    training = Training(steps=40, learning_rate=2e-2, batch_size=16)
    chosen: list[prune.Masks] = []
    real = prune.choose_masks
    monkeypatch.setattr(prune, "choose_masks", lambda *given: chosen.append(real(*given)) or chosen[-1])
    sparsity = 0.75 if pattern == "1:4" else 0.8
    schedule = Prune(sparsity, training, pattern=pattern, scope=scope, end=0.5, update_every=4, reselect_until=until)
    masks = train.train(model, replace(stage(one, model, training, {}), schedule=schedule), one.folder)
    assert len(chosen) == 1 + (32 if until else 20) // 4
    returned = any(
        bool((later[name] & ~earlier[name]).any()) for earlier, later in pairwise(chosen) for name in earlier
    )
    assert returned == comes_back
    for name, matrix in encoder_matrices(model).items():
        assert torch.equal(masks[name], chosen[-1][name]) and torch.equal(matrix.weight != 0, masks[name])


def test_sparsity_follows_the_schedule_and_ends_exactly(tmp_path: Path) -> None:
    one = prepared(tmp_path)
    model = load_model(one.recipe.checkpoint, one.recipe.task)
    masks = train.train(model, stage(one, model, one.recipe.prune.training, {}), one.folder)
    assert prune.overall_sparsity(encoder_matrices(model)) == pytest.approx(0.8, abs=1e-3)
    for name, mask in masks.items():
        assert torch.equal(encoder_matrices(model)[name].weight == 0, ~mask)
    lines = [line for line in train.read_metrics(one.folder) if "step" in line]
    steps = lines[-1]["step"] + 1
    end = round(0.5 * steps)
    for line in lines:
        updated = min(line["step"] // 2 * 2, end) if line["step"] < end else end
        assert line["sparsity"] == pytest.approx(schedules.cubic_sparsity(updated / end, 0.8), abs=2e-3)


@pytest.mark.parametrize("hidden", [0.0, 3.0])
@pytest.mark.parametrize("task", ["text-classification", "token-classification", "question-answering"])
def test_gradient_accumulation_gives_the_step_of_the_whole_batch(tmp_path: Path, task: str, hidden: float) -> None:
    one = prepared(tmp_path, task)
    windows = one.train_windows
    if task == "token-classification":
        # Parts with many, few and no labelled tokens: a mean of means would weigh their tokens differently.
        windows = [replace(w, targets=np.where(np.arange(len(w.ids)) % 7 < i % 7, w.targets, -100).astype(np.int32))
                   for i, w in enumerate(windows)]  # fmt: skip
    weights = []
    for accumulation in (1, 5):
        model = load_model(str(tiny.checkpoint(tmp_path / "same")), one.recipe.task)
        _seed_head(model)
        teacher = load_model(str(tiny.checkpoint(tmp_path / "other", seed=7)), one.recipe.task)
        training = Training(
            epochs=0.5, learning_rate=1e-3, batch_size=16, dropout=0.0, gradient_accumulation=accumulation
        )
        folder = tmp_path / str(accumulation)
        folder.mkdir()
        distilled = replace(
            stage(one, model, training, {}),
            windows=windows,
            teacher=live_teacher(teacher, hidden=hidden > 0),
            distillation=Distillation(hidden=hidden),
        )
        train.train(model, distilled, folder)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
        lines = [line for line in train.read_metrics(folder) if "step" in line]
        assert all(np.isfinite(line["loss"]) for line in lines)
        for line in lines:
            parts = (line["task_loss"] + line["teacher_loss"]) / 2 + hidden * line.get("hidden_loss", 0.0)
            assert line["loss"] == pytest.approx(parts, rel=1e-4) and ("hidden_loss" in line) == (hidden > 0)
    # The same sum in another order: a few float32 roundings a step, some of them through Adam's division.
    assert torch.allclose(weights[0], weights[1], atol=1e-4)


class _Stop(Exception):  # noqa: N818
    pass


def test_a_run_that_stopped_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(train, "SAVE_COST", 0.0)
    results: list[dict[str, Tensor]] = []
    for stop in (None, 17):
        one = prepared(tmp_path, name=f"run-{stop}")
        training = Training(epochs=3, learning_rate=3e-3, batch_size=16, dropout=0.1)
        if stop is not None:
            first = load_model(one.recipe.checkpoint, one.recipe.task, dropout=0.1)
            _seed_head(first)
            with monkeypatch.context() as patch, pytest.raises(_Stop):
                patch.setattr(loop, "collate", _stopping(loop.collate, stop))
                train.train(first, stage(one, first, training, {}), one.folder)
        model = load_model(one.recipe.checkpoint, one.recipe.task, dropout=0.1)
        _seed_head(model)
        train.train(model, stage(one, model, training, {}), one.folder)
        results.append(model.state_dict())
        steps = [line["step"] for line in train.read_metrics(one.folder) if "step" in line]
        assert steps == sorted(set(steps))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def _seed_head(model: torch.nn.Module) -> None:
    torch.manual_seed(5)
    head = model.get_submodule("qa_outputs" if hasattr(model, "qa_outputs") else "classifier")
    assert isinstance(head, torch.nn.Linear)
    torch.nn.init.normal_(head.weight)


def _stopping(real: object, after: int) -> object:
    calls: Iterator[int] = iter(range(after))

    def stopped(*args: object) -> object:
        if next(calls, None) is None:
            raise _Stop
        return real(*args)  # type: ignore[operator]

    return stopped


def test_a_loss_that_is_not_finite_stops_with_the_step(tmp_path: Path) -> None:
    one = prepared(tmp_path)
    model = load_model(one.recipe.checkpoint, one.recipe.task)
    with torch.no_grad():
        model.get_submodule("classifier").bias.fill_(float("nan"))
    with pytest.raises(train.TrainingError, match="prune: loss is nan at step 0; lower the learning rate"):
        train.train(model, stage(one, model, one.recipe.prune.training, {}), one.folder)


def test_frozen_embeddings_do_not_move(tmp_path: Path) -> None:
    one = prepared(tmp_path)
    model = load_model(one.recipe.checkpoint, one.recipe.task)
    before = model.base_model.get_submodule("embeddings.word_embeddings").weight.clone()
    training = Training(epochs=0.5, learning_rate=1e-2, freeze_embeddings=True)
    train.train(model, stage(one, model, training, {}), one.folder)
    assert torch.equal(before, model.base_model.get_submodule("embeddings.word_embeddings").weight)


def test_bfloat16_trains_every_stage_but_one(tmp_path: Path) -> None:
    base = tiny.checkpoint(tmp_path / "base")
    recipe = tmp_path / "tiny.toml"
    text = tiny.recipe("text-classification", base, tmp_path, epochs=6)
    text = re.sub(r"(dropout = .*)", r'\1\nmixed_precision = "bf16"', text)
    before, rewind = text.split("[[quantize.rewinds]]")
    recipe.write_text(before + "[[quantize.rewinds]]" + rewind.replace("bf16", "no"))
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "compression", "run", str(recipe), "--data", str(tmp_path), "--threads", "1"]
    # Some virtual machines announce AMX and then refuse it; oneDNN must not try.
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
    done = subprocess.run(
        [*command, "--run-folder", str(folder)], env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    quality = engine.read_manifest(folder / "artifact").quality
    assert quality["dense"] > 0.9 and quality["quantized"] > 0.9


def test_out_of_memory_says_what_to_lower_and_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(train, "SAVE_COST", 0.0)
    one = prepared(tmp_path)
    model = load_model(one.recipe.checkpoint, one.recipe.task)
    calls = iter(range(5))

    def teach(_numbers: object, batch: Batch) -> Output:
        # The sixth batch asks the real allocator for more than an address space holds.
        return Output(torch.zeros(len(batch.ids), 2) if next(calls, None) is not None else torch.empty(1 << 50))

    hungry = replace(stage(one, model, one.recipe.prune.training, {}), teacher=teach, distillation=Distillation())
    message = (
        r"out of memory at step 2: 16 windows a batch in 2 part\(s\) .*Raise gradient_accumulation .*state.pt is kept"
    )
    with pytest.raises(train.TrainingError, match=message):
        train.train(model, hungry, one.folder)
    assert torch.load(one.folder / "state.pt", weights_only=True)["step"] == 2


def test_a_run_goes_on_with_smaller_parts_but_not_with_another_result(tmp_path: Path) -> None:
    one = prepared(tmp_path)
    text = (one.folder / "recipe.toml").read_text()
    smaller = text.replace("gradient_accumulation = 2", "gradient_accumulation = 4")
    run.prepare(parse_recipe(smaller), smaller, tmp_path, one.folder)
    assert (one.folder / "recipe.toml").read_text() == smaller
    renamed = smaller.replace('name = "tiny"', 'name = "another"').replace("the story was superb", "a dull story")
    run.prepare(parse_recipe(renamed), renamed, tmp_path, one.folder)
    credited = renamed + CREDIT.format(table="data")
    run.prepare(parse_recipe(credited), credited, tmp_path, one.folder)
    assert (one.folder / "recipe.toml").read_text() == credited
    other = smaller.replace("learning_rate = 3e-4", "learning_rate = 2e-4")
    with pytest.raises(RecipeError, match="another recipe"):
        run.prepare(parse_recipe(other), other, tmp_path, one.folder)


CREDIT = """
[[{table}.sources]]
name = "Another name"
licence = "CC0"
source = "nowhere"
"""


def test_whom_texts_are_credited_to_may_change_and_which_texts_may_not(tmp_path: Path) -> None:
    """`sources` is the name of two things: who is credited, and which articles are read."""
    base = tiny.checkpoint(tmp_path / "base")
    articles = [
        {"source": source, "paragraphs": [{"context": f"The story of {place} was good. The film was bad. " * 3}]}
        for source, place in (("towns", "paris"), ("films", "rome"))
    ]
    (tmp_path / "more.json").write_text(json.dumps({"data": articles}))
    unlabelled = 'unlabelled = {files = ["more.json"], sources = ["towns"], sentences = 2}'
    text = tiny.recipe("text-classification", base, tmp_path).replace("[data]", f"[data]\n{unlabelled}")
    run.prepare(parse_recipe(text), text, tmp_path, tmp_path / "run")
    credited = text + CREDIT.format(table="data")
    run.prepare(parse_recipe(credited), credited, tmp_path, tmp_path / "run")
    other = credited.replace('sources = ["towns"]', 'sources = ["films"]')
    with pytest.raises(RecipeError, match="another recipe"):
        run.prepare(parse_recipe(other), other, tmp_path, tmp_path / "run")
    assert (tmp_path / "run" / "recipe.toml").read_text() == credited


def test_whom_a_language_models_text_is_credited_to_may_change(tmp_path: Path) -> None:
    text = tiny.language_recipe(tiny.checkpoint(tmp_path / "base"), tmp_path)
    credited = text + CREDIT.format(table="text")
    for given in (text, credited):
        recipe = parse_recipe(given)
        assert isinstance(recipe, LanguageRecipe)
        pretrain.prepare(recipe, given, tmp_path, tmp_path / "run")
    assert recipe.text.sources[0].name == "Another name"
    assert (tmp_path / "run" / "recipe.toml").read_text() == credited


def test_a_line_cut_short_by_a_kill_costs_that_line_alone(tmp_path: Path) -> None:
    train.append_metrics(tmp_path, {"stage": "a", "step": 0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "a", "st')
    train.append_metrics(tmp_path, {"stage": "b", "step": 0})
    assert [line["stage"] for line in train.read_metrics(tmp_path)] == ["a", "b"]


def test_the_judge_is_heard_and_changes_nothing(tmp_path: Path) -> None:
    weights = []
    for judged in (True, False):
        one = prepared(tmp_path, name=f"run-{judged}")
        model = load_model(one.recipe.checkpoint, one.recipe.task, dropout=0.1)
        _seed_head(model)

        def judge(model: torch.nn.Module = model) -> float:
            model.train(False)
            return float(torch.rand(1) >= 0)  # random numbers of its own

        with_judge = replace(stage(one, model, one.recipe.prune.training, {}), judge=judge if judged else None)
        train.train(model, with_judge, one.folder)
        weights.append(model.get_submodule("classifier").weight)
        metrics = [line["step"] for line in train.read_metrics(one.folder) if "metric" in line]
        assert metrics == ([7, 14, 21] if judged else []), "after 8, 15 and 22 of 30 steps"
    assert torch.equal(*weights)
