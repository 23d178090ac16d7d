"""Checkpoints in the styles of the published families, exported without training through the command line."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    PreTrainedModel,
)
from typer.testing import CliRunner

import engine
from compression import convert, verify
from compression.checkpoint import encoder_matrices
from compression.cli import app
from compression.state_names import StateNamesError, clean_names
from tests.compression import tiny


def prune_blocks(model: PreTrainedModel, rows: int, columns: int, sparsity: float = 0.8) -> None:
    torch.manual_seed(0)
    for matrix in encoder_matrices(model).values():
        out, inputs = matrix.weight.shape
        kept = torch.rand(out // rows, inputs // columns) >= sparsity
        matrix.weight.data *= kept.repeat_interleave(rows, 0).repeat_interleave(columns, 1)


def trained(model: PreTrainedModel) -> PreTrainedModel:
    """Weights as large as trained ones, so that logits are not all alike."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def save_bin(model: PreTrainedModel, folder: Path, state: dict[str, torch.Tensor] | None = None) -> None:
    """Write pytorch_model.bin alone, as the hub had it before safetensors."""
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(state if state is not None else model.state_dict(), folder / "pytorch_model.bin")


def export(checkpoint: Path, out: Path, *options: str, task: str = "question-answering") -> tuple[int, str]:
    command = ["export", str(checkpoint), "--out", str(out), "--task", task, "--threads", "1", *options]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "120"})
    return result.exit_code, result.output


def test_a_dense_file_with_zeros_in_blocks(tmp_path: Path) -> None:
    """As Intel published Prune OFA models: plain names, pytorch_model.bin, here 4x1 although the name may say 1x4."""
    base = tiny.checkpoint(tmp_path / "base")
    model = trained(BertForQuestionAnswering.from_pretrained(base))
    prune_blocks(model, 4, 1)
    save_bin(model, base)
    status, output = export(base, tmp_path / "out")
    assert status == 0, output
    assert "zeros, 4x1" in output and "equal decisions" in output
    manifest = engine.read_manifest(tmp_path / "out").raw
    assert manifest["sparsity"]["pattern"] == manifest["provenance"]["found"]["pattern"] == "4x1"
    assert manifest["provenance"]["found"]["matrices"]["encoder.1.ffn_out"]["pattern"] == "4x1"
    assert manifest["provenance"]["verified"]["int8"]["relative"] < 0.1
    for name, matrix in encoder_matrices(model).items():
        assert manifest["matrices"][name]["survivors"] <= int((matrix.weight != 0).sum()), "what was zero stays zero"
    assert {path.name for path in tmp_path.iterdir()} == {"base", "out"}, "no draft is left"


def wrapped_names(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The names of SparseML's quantization-aware training: wrapped modules, ranges and switches beside the weights."""
    state = {}
    matrices = {id(matrix.weight) for matrix in encoder_matrices(model).values()}
    for name, parameter in model.named_parameters():
        owner, kind = name.rsplit(".", 1)
        wrapped = id(parameter) in matrices or name.endswith("dense.bias")
        state[f"{owner}.module.{kind}" if wrapped else name] = parameter.detach()
        if id(parameter) in matrices:
            state[f"{owner}.module.weight_fake_quant.scale"] = torch.ones(1)
            state[f"{owner}.module.weight_fake_quant.activation_post_process.min_val"] = torch.zeros(1)
            state[f"{owner}.quant.activation_post_process.fake_quant_enabled"] = torch.ones(1)
            state[f"{owner}.quant.activation_post_process.zero_point"] = torch.zeros(1)
    state["bert.encoder.layer.0.attention.self.attention_scores_matmul.input_quant_stubs.0.scale"] = torch.ones(1)
    return state


def test_names_of_wrappers_and_leftovers_of_fake_quantization(tmp_path: Path) -> None:
    base = tiny.checkpoint(tmp_path / "base")
    model = trained(BertForQuestionAnswering.from_pretrained(base))
    prune_blocks(model, 1, 4)
    plain, aside = clean_names(wrapped_names(model))
    assert set(plain) == {name for name, _ in model.named_parameters()}
    assert len(aside) == 4 * 12 + 1
    save_bin(model, base, {f"module.{name}": tensor for name, tensor in wrapped_names(model).items()})
    status, output = export(base, tmp_path / "out")
    assert status == 0, output
    assert "zeros, 1x4" in output
    save_bin(model, base)
    assert export(base, tmp_path / "plain")[0] == 0
    bytes_of = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "plain")]
    assert bytes_of[0] == bytes_of[1], "the names are all that differs"


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StateNamesError, match=r"packed integers \(classifier._packed_params.dtype"):
        clean_names({"classifier._packed_params.dtype": torch.zeros(1)})
    base = tiny.checkpoint(tmp_path / "base")
    model = BertForQuestionAnswering.from_pretrained(base)
    save_bin(model, base, {"bert.encoder.layer.0.attention.self.query._packed_params.dtype": torch.zeros(1)})
    status, output = export(base, tmp_path / "out")
    assert status == 2 and "the float checkpoint is needed" in output


def test_a_sparse_language_model_is_told_what_it_lacks(tmp_path: Path) -> None:
    base = tiny.checkpoint(tmp_path / "base")
    BertForPreTraining.from_pretrained(base).save_pretrained(base)
    status, output = export(base, tmp_path / "out")
    assert status == 2
    assert "it lacks qa_outputs" in output and "it was saved as BertForPreTraining. A language model must be" in output


def test_too_few_zeros_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    base = tiny.checkpoint(tmp_path / "base")
    trained(BertForQuestionAnswering.from_pretrained(base)).save_pretrained(base)
    status, output = export(base, tmp_path / "out", "--require-sparsity", "0.8")
    assert status == 2
    assert "has 0.00 % zeros in its encoder (dense), --require-sparsity asks for 80 %" in output
    assert not (tmp_path / "out").exists()
    assert export(base, tmp_path / "out")[0] == 0, "a dense checkpoint is exported where nobody asks for zeros"
    assert engine.read_manifest(tmp_path / "out").raw["sparsity"]["pattern"] == "dense"


def test_data_gives_the_metric_before_and_after(tmp_path: Path) -> None:
    base = tiny.checkpoint(tmp_path / "base")
    labels = {0: "negative", 1: "positive"}
    config = BertConfig.from_pretrained(base, id2label=labels, label2id={name: i for i, name in labels.items()})
    model = trained(BertForSequenceClassification.from_pretrained(base, config=config))
    model.save_pretrained(base)
    data = tiny.write_sentiment(tmp_path / "dev.tsv")
    named = data.read_text().replace("sentence", "review", 1)
    data.write_text(named)
    options = ("--data", str(data), "--text", "review")
    status, output = export(base, tmp_path / "out", *options, task="text-classification")
    assert status == 0, output
    quality = engine.read_manifest(tmp_path / "out").raw["quality"]
    assert (quality["dataset"], quality["examples"], quality["metric"]) == ("dev.tsv", 160, "accuracy")
    assert quality["sparse"] is None and 0 < quality["dense"] < 1
    assert (
        f"accuracy on 160 examples of dev.tsv: checkpoint {quality['dense']}, artifact {quality['quantized']}" in output
    )


def unnamed(folder: Path) -> Path:
    """A classifier as textattack publishes them: its outputs are called LABEL_0, LABEL_1."""
    base = tiny.checkpoint(folder)
    trained(BertForSequenceClassification.from_pretrained(base)).save_pretrained(base)
    return base


def test_outputs_without_names_get_those_of_the_command_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = unnamed(tmp_path / "base")
    data = tiny.write_sentiment(tmp_path / "dev.tsv")
    data.write_text(data.read_text().replace("\t0", "\tnegative").replace("\t1", "\tpositive"))
    options = ("--labels", "negative, positive", "--data", str(data))
    status, output = export(base, tmp_path / "out", *options, task="text-classification")
    assert status == 0, output
    assert engine.read_manifest(tmp_path / "out").task.labels == ("negative", "positive")
    assert "--labels names them" not in caplog.text
    status, output = export(base, tmp_path / "as-it-is", task="text-classification")
    assert status == 0, output
    assert engine.read_manifest(tmp_path / "as-it-is").task.labels == ("LABEL_0", "LABEL_1")
    assert "calls its outputs LABEL_0, LABEL_1: the service will answer so; --labels names them" in caplog.text


@pytest.mark.parametrize(
    ("labels", "task", "message"),
    [
        ("a,b,c", "text-classification", "outputs are ['LABEL_0', 'LABEL_1']: give 2 different names"),
        ("a,a", "text-classification", "give 2 different names"),
        ("a,", "text-classification", "give 2 different names"),
        ("a,b", "question-answering", "outputs are ['start', 'end']: give none for question-answering"),
    ],
)
def test_labels_that_do_not_fit_the_outputs_are_refused(tmp_path: Path, labels: str, task: str, message: str) -> None:
    base = unnamed(tmp_path / "base")
    if task == "question-answering":
        trained(BertForQuestionAnswering.from_pretrained(base)).save_pretrained(base)
    status, output = export(base, tmp_path / "out", "--labels", labels, task=task)
    assert status == 2 and message in output
    assert not (tmp_path / "out").exists()


def test_an_artifact_of_another_model_does_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The artifact is really written wrong: one matrix of its model was changed before the export."""
    base = tiny.checkpoint(tmp_path / "base")
    trained(BertForQuestionAnswering.from_pretrained(base)).save_pretrained(base)

    def careless(model: PreTrainedModel, *arguments: object, **options: object) -> None:
        matrix = encoder_matrices(model)["encoder.1.ffn_out"]
        kept = matrix.weight.data.clone()
        matrix.weight.data = matrix.weight.data.flip(0)
        real(model, *arguments, **options)  # type: ignore[arg-type]
        matrix.weight.data = kept

    real = convert.export_model
    monkeypatch.setattr(convert, "export_model", careless)
    status, output = export(base, tmp_path / "out")
    assert status == 2 and "the engine's logits differ from torch's in int8" in output
    assert {path.name for path in tmp_path.iterdir()} == {"base"}


def test_attention_in_float32_is_written_and_compared_with(tmp_path: Path) -> None:
    base = tiny.checkpoint(tmp_path / "base")
    trained(BertForQuestionAnswering.from_pretrained(base)).save_pretrained(base)
    apart = {}
    for attention in ("int8", "float32"):
        status, output = export(base, tmp_path / attention, "--attention", attention)
        assert status == 0, output
        manifest = engine.read_manifest(tmp_path / attention).raw
        assert manifest["quantization"]["attention"] == attention
        apart[attention] = manifest["provenance"]["verified"]
    assert apart["float32"]["float32"]["relative"] < apart["int8"]["float32"]["relative"], "8 bits cost something"
    status, output = export(base, tmp_path / "no", "--attention", "int4")
    assert status == 2 and "attention is 'int4'; it must be int8 or float32" in output


def test_a_folder_that_is_no_artifact_is_not_replaced(tmp_path: Path) -> None:
    base = tiny.checkpoint(tmp_path / "base")
    trained(BertForQuestionAnswering.from_pretrained(base)).save_pretrained(base)
    status, output = export(base, base)
    assert status == 2 and "exists and is not an artifact: remove it, or write elsewhere" in output
    assert (base / "model.safetensors").is_file()


def test_rounding_that_makes_another_model_is_refused(tmp_path: Path) -> None:
    base = tiny.checkpoint(tmp_path / "base")
    model = trained(BertForQuestionAnswering.from_pretrained(base))
    for matrix in encoder_matrices(model).values():
        matrix.weight.data[:, 0] = 30.0  # one huge weight a row: all others round to 0
    model.save_pretrained(base)
    status, output = export(base, tmp_path / "out")
    assert status == 2 and "needs quantization-aware training" in output


def test_differences_by_hand() -> None:
    import numpy as np

    expected = [np.array([1.0, -1.0], np.float32), np.array([-2.0, 2.0], np.float32)]
    found = [np.array([1.5, -0.5], np.float32), np.array([0.5, -0.5], np.float32)]
    classes = verify.difference(expected, found, axis=-1)
    assert classes.largest == 2.5 and classes.agreement == 0.5
    # Around each mean the first differs by 0 and 0, the second by -2.5 and 2.5; the size is sqrt((1 + 1 + 4 + 4) / 4).
    assert classes.relative == pytest.approx((12.5 / 4) ** 0.5 / (10 / 4) ** 0.5)
    starts = verify.difference(
        [np.array([[0, 1], [2, 0]], np.float32)], [np.array([[3, 1], [2, 0]], np.float32)], axis=0
    )
    assert starts.agreement == 0.5, "the end is the same token, the start is not"
    labels = verify.difference([np.array([1, 2], np.float32)], [np.array([-1, 2], np.float32)], axis=None)
    assert labels.agreement == 0.5 and labels.relative == pytest.approx((4 / 5) ** 0.5), "each label by itself"


def test_shards_and_dtypes_are_read(tmp_path: Path) -> None:
    from compression.state_names import read_state

    model = BertForQuestionAnswering.from_pretrained(tiny.checkpoint(tmp_path / "base"))
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    state = read_state(tmp_path / "shards")
    assert state is not None and set(state) == set(model.state_dict())
    model.save_pretrained(tmp_path / "whole")
    assert set(load_file(tmp_path / "whole" / "model.safetensors")) == set(state)
    assert read_state(tmp_path) is None
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["architectures"] == ["BertForQuestionAnswering"]
