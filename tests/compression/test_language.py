"""The chunked language loss against the plain formula on whole logits, and against transformers' own."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForMaskedLM, BertForPreTraining, DistilBertForMaskedLM, PreTrainedModel

from compression import language
from compression.checkpoint import CheckpointError, load_tokenizer
from compression.encode import IGNORED
from compression.language import Body, LanguageLoss, chunked_loss, judge, load_language_model
from compression.masking import MaskedWindows, cut_segments
from compression.objective import Batch, batch_of, collate
from compression.recipe import Distillation, LanguageTask
from compression.text import load_corpus
from tests.compression import tiny


def task(next_sentence: bool = False) -> LanguageTask:
    return LanguageTask("masked-language-modelling", 32, next_sentence)


def model_of(folder: Path, family: str, one: LanguageTask, seed: int = 0) -> PreTrainedModel:
    """A random language model whose heads and biases are not at their start."""
    model = load_language_model(str(tiny.checkpoint(folder, family=family, seed=seed)), one, new_heads=True)
    torch.manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.train(False)


def windows(tmp_path: Path, one: LanguageTask) -> MaskedWindows:
    tokenizer = load_tokenizer(str(tiny.checkpoint(tmp_path / "tokens")))
    corpus = load_corpus([tiny.write_text(tmp_path / "text.txt")], tokenizer, tmp_path / "text")
    documents = torch.arange(corpus.documents).numpy()
    return MaskedWindows(corpus, cut_segments(corpus, documents, one, 0.3, tokenizer, 0), tokenizer, 0.15, 0)


def guessed(batch: Batch) -> Tensor:
    """The targets without the next-sentence label, which stands at [CLS]."""
    targets = batch.targets.clone()
    targets[:, 0] = IGNORED
    return targets


def plain_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    p, q = (functional.softmax(logits / temperature, dim=-1) for logits in (teacher, student))
    return (p * (p / q).log()).sum(dim=-1).mean() * temperature**2


def plain_loss(
    model: PreTrainedModel, teacher: PreTrainedModel, batch: Batch, given: Distillation, pairs: bool
) -> Tensor:
    inputs = {"input_ids": batch.ids, "attention_mask": batch.attended, "output_hidden_states": True}
    if model.config.model_type == "bert":
        inputs["token_type_ids"] = batch.types
    found = model(**inputs)
    with torch.no_grad():
        wanted = teacher(**inputs)
    logits, expected = (getattr(o, "prediction_logits", getattr(o, "logits", None)) for o in (found, wanted))
    masked = guessed(batch) != IGNORED
    compared = masked if given.masked_only else batch.attended.bool()
    hard = functional.cross_entropy(logits[masked], batch.targets[masked])
    soft = plain_divergence(logits[compared], expected[compared], given.temperature)
    if pairs:
        hard = hard + functional.cross_entropy(found.seq_relationship_logits, batch.targets[:, 0])
        soft = soft + plain_divergence(found.seq_relationship_logits, wanted.seq_relationship_logits, given.temperature)
    total = given.task * hard + given.teacher * soft
    if given.hidden:
        real = batch.attended.bool()
        apart = [
            (a / a.norm(dim=-1, keepdim=True) - b / b.norm(dim=-1, keepdim=True)).square().sum(dim=-1)[real].mean()
            for a, b in zip(found.hidden_states[1:], wanted.hidden_states[1:], strict=True)
        ]
        total = total + given.hidden * sum(apart) / len(apart)
    return total


@pytest.mark.parametrize(
    ("family", "pairs", "given"),
    [
        ("bert", True, Distillation()),
        ("bert", False, Distillation(masked_only=True)),
        ("bert", True, Distillation(task=0.2, teacher=1.5, temperature=5.5, hidden=3.0)),
        ("distilbert", False, Distillation(hidden=1.0)),
        ("distilbert", False, Distillation(task=0.0, teacher=1.0)),
    ],
)
def test_loss_and_gradients_equal_the_plain_formula(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, pairs: bool, given: Distillation
) -> None:
    monkeypatch.setitem(language.CHUNK_TOKENS, "cpu", 7)  # many chunks, and a last one that is not full
    one = task(pairs)
    student, teacher = model_of(tmp_path / "a", family, one), model_of(tmp_path / "b", family, one, seed=3)
    many = windows(tmp_path, one)
    batch = collate([many[number] for number in range(6)], torch.device("cpu"))
    expected = plain_loss(student, teacher, batch, given, pairs)
    expected.backward()
    wanted = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()
    loss, figures = LanguageLoss(student, pairs, given, teacher)(Body(student), batch)
    (0.5 * loss).backward()  # a factor outside, as gradient accumulation has
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    parts = given.task * figures["task_loss"] + given.teacher * figures["teacher_loss"]
    parts += given.hidden * figures.get("hidden_loss", torch.zeros(()))
    assert figures["loss"].item() == pytest.approx(parts.item(), rel=1e-5)
    trained = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    assert set(trained) == set(wanted)
    for name, gradient in trained.items():
        assert torch.allclose(2 * gradient, wanted[name], rtol=1e-4, atol=1e-6), name
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("masked_only", [False, True])
def test_parts_of_a_batch_add_up_to_its_loss_and_gradients(tmp_path: Path, masked_only: bool) -> None:
    """As gradient accumulation and several processes cut it: other numbers of tokens, masked or not, in every part."""
    one = task(True)
    student, teacher = (model_of(tmp_path / str(seed), "bert", one, seed) for seed in (0, 1))
    many = windows(tmp_path, one)
    given = Distillation(hidden=0.7, masked_only=masked_only)
    loss_of = LanguageLoss(student, True, given, teacher)
    cut = [collate([many[number] for number in part], torch.device("cpu")) for part in ((0, 1, 2, 3, 4), (5,), (6, 7))]
    for array in (cut[1].targets, cut[1].given):
        array[:, 1:] = IGNORED if array is cut[1].targets else False  # a part with nothing masked
    longest = max(part.ids.shape[1] for part in cut)

    def joined(name: str, fill: int = 0) -> np.ndarray:
        parts = [getattr(part, name) for part in cut]
        return torch.cat([functional.pad(part, (0, longest - part.shape[1]), value=fill) for part in parts]).numpy()

    whole = batch_of(
        np.stack([joined(name) for name in ("ids", "types", "attended")]),
        joined("targets", IGNORED),
        torch.device("cpu"),
    )
    expected, figures = loss_of(Body(student), whole)
    expected.backward()
    wanted = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()
    totals, found = loss_of.counts(whole), [loss_of.counts(part) for part in cut]
    assert totals == {key: sum(count[key] for count in found) for key in LanguageLoss.COUNTED}
    added = {key: torch.zeros(()) for key in figures}
    for part, count in zip(cut, found, strict=True):
        loss, values = loss_of(Body(student), part, {key: count[key] / total for key, total in totals.items()})
        loss.backward()
        added = {key: added[key] + value for key, value in values.items()}
    for key, figure in figures.items():
        assert added[key].item() == pytest.approx(figure.item(), rel=1e-5), key
    for name, parameter in student.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(parameter.grad, wanted[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize(("family", "pairs"), [("bert", True), ("distilbert", False)])
def test_without_a_teacher_it_is_transformers_own_loss(tmp_path: Path, family: str, pairs: bool) -> None:
    one = task(pairs)
    model = model_of(tmp_path / "a", family, one)
    many = windows(tmp_path, one)
    batch = collate([many[number] for number in range(5)], torch.device("cpu"))
    labels = guessed(batch)
    given = {"next_sentence_label": batch.targets[:, 0], "token_type_ids": batch.types} if pairs else {}
    theirs = model(input_ids=batch.ids, attention_mask=batch.attended, labels=labels, **given).loss
    for loss in (LanguageLoss(model, pairs), LanguageLoss(model, pairs, Distillation(), model).without_teacher()):
        ours, figures = loss(Body(model), batch)
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
        assert set(figures) == {"loss", "task_loss"}


def test_chunks_of_a_sum_give_its_gradient_in_bfloat16_autocast_too() -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 50)
    states = torch.randn(33, 8, requires_grad=True)

    def loss_of(_chunk: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        return logits.float().logsumexp(dim=-1).sum(), logits.float().softmax(dim=-1).to(logits.dtype)

    gradients = []
    for size in (33, 4):
        states.grad = None
        head.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = chunked_loss(head, loss_of, states, list(head.parameters()), size)
        loss.backward()
        gradients.append([states.grad.clone(), head.weight.grad.clone(), head.bias.grad.clone()])
    # bfloat16 has 8 bits; the sum over 33 rows is rounded once or in 9 parts.
    assert all(torch.allclose(a, b, rtol=0.02, atol=0.05) for a, b in zip(*gradients, strict=True))
    assert gradients[0][1].abs().max() > 1


@pytest.mark.parametrize(("family", "pairs"), [("bert", True), ("bert", False), ("distilbert", False)])
def test_judge_agrees_with_transformers_on_whole_logits(tmp_path: Path, family: str, pairs: bool) -> None:
    one = task(pairs)
    model = model_of(tmp_path / "a", family, one)
    many = windows(tmp_path, one)
    batch = collate(list(many), torch.device("cpu"))
    types = {"token_type_ids": batch.types} if family == "bert" else {}
    with torch.no_grad():
        output = model(input_ids=batch.ids, attention_mask=batch.attended, **types)
    logits = getattr(output, "prediction_logits", getattr(output, "logits", None))
    targets = guessed(batch)
    masked = targets != IGNORED
    loss = functional.cross_entropy(logits[masked], targets[masked]).item()
    scores = judge(model, many, one, name="test", batch_size=4)
    assert scores["loss"] == pytest.approx(loss, rel=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert scores["accuracy"] == pytest.approx((logits[masked].argmax(-1) == targets[masked]).float().mean().item())
    if pairs:
        right = output.seq_relationship_logits.argmax(-1) == batch.targets[:, 0]
        assert scores["next_sentence_accuracy"] == pytest.approx(right.float().mean().item())
    else:
        assert "next_sentence_accuracy" not in scores


@pytest.mark.parametrize(("family", "kind"), [("bert", BertForPreTraining), ("distilbert", DistilBertForMaskedLM)])
def test_a_saved_model_is_an_ordinary_one_with_tied_embeddings(tmp_path: Path, family: str, kind: type) -> None:
    model = model_of(tmp_path / "a", family, task())
    model.save_pretrained(tmp_path / "saved")
    for loaded in (kind.from_pretrained(tmp_path / "saved"), AutoModelForMaskedLM.from_pretrained(tmp_path / "saved")):
        assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
        assert torch.equal(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight)
    again = load_language_model(str(tmp_path / "saved"), task())
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_dropout_is_that_of_the_training_and_the_configuration_keeps_its_own(tmp_path: Path, family: str) -> None:
    base = str(tiny.checkpoint(tmp_path / "a", family=family))
    one = task()
    for rate in (0.0, 0.5):
        model = load_language_model(base, one, dropout=rate, new_heads=True).train()
        many = windows(tmp_path / str(rate), one)
        batch = collate([many[0]], torch.device("cpu"))
        first, second = (Body(model)(batch).last_hidden_state for _ in range(2))
        assert torch.equal(first, second) == (rate == 0.0)
        config = model.config
        assert (config.hidden_dropout_prob if family == "bert" else config.dropout) == 0.1


def test_without_next_sentences_the_pooler_is_kept_as_it_was(tmp_path: Path) -> None:
    model = load_language_model(str(tiny.checkpoint(tmp_path)), task(), new_heads=True)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {
        f"{part}.{kind}" for part in ("bert.pooler.dense", "cls.seq_relationship") for kind in ("weight", "bias")
    }
    assert "pooler" not in language.language_matrices(model, task())
    assert "pooler" in language.language_matrices(model, task(True))


@pytest.mark.parametrize(
    ("family", "window", "pairs", "message"),
    [
        ("bert", 32, False, "its language model's head must be trained first; give the recipe a \\[teacher\\] stage"),
        ("bert", 65, False, "has 64 positions"),
        ("distilbert", 32, True, "is a distilbert: next_sentence is for bert alone"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_says_why(
    tmp_path: Path, family: str, window: int, pairs: bool, message: str
) -> None:
    base = tiny.checkpoint(tmp_path, family=family)
    with pytest.raises(CheckpointError, match=message):
        load_language_model(str(base), LanguageTask("masked-language-modelling", window, pairs))
