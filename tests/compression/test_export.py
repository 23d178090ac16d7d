"""The torch model with fake quantization against its artifact in the engine; checkpoints exported as they are."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification
from typer.testing import CliRunner

import engine
from compression import prune
from compression.checkpoint import encoder_matrices, load_model, load_tokenizer, model_labels
from compression.cli import app
from compression.encode import Encoder, Window
from compression.evaluate import torch_predictor
from compression.examples import TextExample
from compression.export import Origin, engine_predictor, export_model, task_of
from compression.objective import collate
from compression.quantize import QuantizedLinear, quantize_model
from compression.recipe import Task
from tests.compression import tiny

LABELS = {"question-answering": (), "text-classification": ("a", "b", "c"), "token-classification": ("PER", "LOC")}


def windows(count: int = 40, seed: int = 0) -> list[Window]:
    random = np.random.default_rng(seed)
    made = []
    for number in range(count):
        ids = random.integers(5, 90, random.integers(1, 50)).astype(np.int32)
        types = (np.arange(len(ids)) > len(ids) // 2).astype(np.int32)
        made.append(Window(number, ids, types, np.zeros(1, np.int32), np.empty(0, np.int32)))
    return made


@pytest.fixture(
    params=[(family, task) for family in ("bert", "distilbert") for task in LABELS], ids=lambda p: "-".join(p)
)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[torch.nn.Module, engine.Model]:
    """A sparse model with fake quantization in torch, and its artifact loaded by the engine."""
    family, name = request.param
    task = Task(name, labels=LABELS[name], window=32, stride=8)
    base = str(tiny.checkpoint(tmp_path / "base", family=family, layers=3, hidden=48))
    model = load_model(base, task)
    torch.manual_seed(1)
    for (
        parameter
    ) in model.parameters():  # biases and norms that are not at their start, weights as large as trained ones
        parameter.data += 0.05 * torch.randn_like(parameter)
    matrices = encoder_matrices(model)
    prune.apply_masks(matrices, prune.magnitude_masks(matrices, 0.85))
    export_model(model, load_tokenizer(base).to_str(), task, model_labels(task), Origin("pair"), tmp_path / "artifact")
    quantize_model(model)
    return model.train(False), engine.load(tmp_path / "artifact", threads=1)


@torch.no_grad()
def test_engine_follows_torch_layer_by_layer(pair: tuple[torch.nn.Module, engine.Model]) -> None:
    """Float sums in another order differ by a few 1e-7; where that moves a value over a rounding edge, an activation
    changes by one step s_x and an output by at most s_x max|w|. The tolerance is one such move a layer, of the matrix
    where it is largest; LayerNorm's slope is about 1 here."""
    model, loaded = pair
    ranges: dict[str, float] = {}
    for name, matrix in encoder_matrices(model).items():
        assert isinstance(matrix, QuantizedLinear)
        matrix.register_forward_pre_hook(lambda _m, x, n=name: ranges.__setitem__(n, float(x[0].max() - x[0].min())))
    for window in windows(8):
        batch = collate([window], torch.device("cpu"))
        types = {"token_type_ids": batch.types} if loaded.manifest.architecture.types else {}
        states = model.base_model(
            batch.ids, attention_mask=batch.attended, output_hidden_states=True, **types
        ).hidden_states
        given = window.types if loaded.manifest.architecture.types else None
        found = loaded.hidden_states(window.ids, np.array([len(window.ids)], np.int32), given)
        assert np.abs(found[0] - states[0][0].numpy()).max() < 1e-5
        tolerance = 1e-5
        for layer in range(1, len(states)):
            tolerance += max(
                ranges[name] / 255 * float(matrix.weight.abs().max())
                for name, matrix in encoder_matrices(model).items()
                if name.startswith(f"encoder.{layer - 1}.")
            )
            difference = np.abs(found[layer] - states[layer][0].numpy())
            assert difference.max() <= tolerance
            # Edges are rarely crossed, but what crosses one reaches every token through attention, a little.
            assert np.median(difference) < 5e-4


def test_predictions_agree_on_many_inputs(pair: tuple[torch.nn.Module, engine.Model]) -> None:
    model, loaded = pair
    many = windows(300, seed=1)
    given = [
        Window(w.example, w.ids, w.types * loaded.manifest.architecture.types // 2, w.targets, w.places) for w in many
    ]
    theirs, ours = torch_predictor(model)(given), engine_predictor(loaded)(given)
    margins = [np.sort(a, axis=-1)[..., -1] - np.sort(a, axis=-1)[..., -2] for a in theirs]
    same = [np.argmax(a, -1) == np.argmax(b, -1) for a, b in zip(theirs, ours, strict=True)]
    flat = np.concatenate([np.atleast_1d(s) for s in same])
    clear = np.concatenate([np.atleast_1d(m) > 1e-2 for m in margins])
    assert flat[clear].all(), "a clear decision differs"
    assert flat.mean() > 0.99
    assert max(np.abs(a - b).max() for a, b in zip(theirs, ours, strict=True)) < 0.1


def test_export_command_takes_a_finetuned_checkpoint_as_it_is(tmp_path: Path) -> None:
    base = tiny.checkpoint(tmp_path / "base")
    labels = {0: "no", 1: "yes", 2: "maybe"}
    config = BertConfig.from_pretrained(base, num_labels=3, id2label=labels, label2id={v: k for k, v in labels.items()})
    model = BertForSequenceClassification.from_pretrained(base, config=config)
    prune.apply_masks(encoder_matrices(model), prune.magnitude_masks(encoder_matrices(model), 0.9))
    model.save_pretrained(base)
    command = ["export", str(base), "--out", str(tmp_path / "mine"), "--task", "text-classification"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    loaded = engine.load(tmp_path / "mine", threads=1)
    assert loaded.manifest.name == "mine" and tuple(loaded.manifest.task.labels) == ("no", "yes", "maybe")
    assert loaded.manifest.raw["sparsity"]["overall"] >= 0.9
    assert loaded.manifest.task.window == 64, "no more than the model's positions"
    task = Task("text-classification", tuple(labels.values()), window=64, stride=8)
    (window,) = Encoder(load_tokenizer(str(base)), task, uses_types=True).windows([TextExample("the film was good", 0)])
    dense = torch_predictor(model)([window])[0]
    assert np.abs(engine_predictor(loaded)([window])[0] - dense).max() < 0.1  # rounding to 8 bit, no training


def test_export_takes_over_what_kind_of_task_it_is(tmp_path: Path) -> None:
    base = tiny.checkpoint(tmp_path / "base")
    many = Task("text-classification", labels=("a", "b"), window=32, multi_label=True)
    load_model(str(base), many).save_pretrained(tmp_path / "many")
    load_tokenizer(str(base)).save(str(tmp_path / "many" / "tokenizer.json"))
    asking = Task("question-answering", window=32)
    load_model(str(base), asking).save_pretrained(tmp_path / "asking")
    load_tokenizer(str(base)).save(str(tmp_path / "asking" / "tokenizer.json"))
    for name, task, option in (("many", many, "--pairs"), ("asking", asking, "--no-answer")):
        command = ["export", str(tmp_path / name), "--out", str(tmp_path / f"{name}-out"), "--task", task.name, option]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    exported = task_of(engine.read_manifest(tmp_path / "many-out"))
    assert (exported.pairs, exported.multi_label, exported.no_answer) == (True, True, False)
    exported = task_of(engine.read_manifest(tmp_path / "asking-out"))
    assert (exported.no_answer, exported.no_answer_threshold) == (True, 0.0)
    data = tiny.write_questions2(tmp_path / "dev.json")
    judged = ["--out", str(tmp_path / "judged"), "--task", "question-answering", "--no-answer", "--data", str(data)]
    result = CliRunner().invoke(app, ["export", str(tmp_path / "asking"), *judged])
    assert result.exit_code == 0, result.output
    manifest = engine.read_manifest(tmp_path / "judged")
    assert task_of(manifest).no_answer_threshold != 0.0
    result = CliRunner().invoke(app, ["evaluate", str(tmp_path / "judged"), str(data)])
    score = manifest.raw["quality"]["quantized"]
    assert f" f1 {score:.4f}" in result.output and f"best_f1 {score:.4f}" in result.output, "the best is what it does"


@pytest.mark.parametrize(
    ("task", "message"), [("token-classification", "it lacks"), ("summarization", "known are question-answering")]
)
def test_export_refuses_what_does_not_fit(tmp_path: Path, task: str, message: str) -> None:
    base = tiny.checkpoint(tmp_path / "base")
    BertForQuestionAnswering.from_pretrained(base).save_pretrained(base)
    result = CliRunner().invoke(app, ["export", str(base), "--out", str(tmp_path / "out"), "--task", task])
    assert result.exit_code == 2 and message in result.output
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_family_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "roberta", "architectures": ["RobertaModel"]}')
    result = CliRunner().invoke(
        app, ["export", str(tmp_path), "--out", str(tmp_path / "o"), "--task", "question-answering"]
    )
    assert result.exit_code == 2 and "supported are bert and distilbert" in result.output
