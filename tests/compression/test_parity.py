"""Our encoding, loss, answers and training against transformers' own, on tiny checkpoints."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoTokenizer,
    DataCollatorForTokenClassification,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    pipeline,
)

from compression import decode, loop, train
from compression.batches import plan_batches
from compression.checkpoint import encoder_matrices, load_model, load_tokenizer, model_labels
from compression.encode import Encoder
from compression.evaluate import evaluate, torch_predictor
from compression.examples import Example, QuestionExample, TaggedExample, TextExample
from compression.golden import group_entities, split_words
from compression.objective import collate, output_of, task_loss
from compression.recipe import Task, Training
from tests.compression import tiny

CPU = torch.device("cpu")
WORDS = st.lists(st.sampled_from([*tiny.POSITIVE, *tiny.PLACES, "xyz", "?"]), max_size=40)
ONE = Task("text-classification", labels=("negative", "positive"), window=32, stride=8)
PAIR = Task("text-classification", labels=("no", "yes", "maybe"), window=32, stride=8, pairs=True)
MANY = Task("text-classification", labels=("praise", "blame", "place"), window=32, stride=8, multi_label=True)
ENTITIES = Task("token-classification", labels=("PER", "LOC"), window=32, stride=8)
QUESTIONS = Task("question-answering", window=32, stride=8, no_answer=True)

EXAMPLES: dict[str, tuple[Task, list[Example]]] = {
    "text": (ONE, [TextExample("the film was good", 1), TextExample("a dull story", 0)]),
    "pairs": (PAIR, [TextExample("the film was good", 2, "a superb story"), TextExample("a", 0, "the film was bad .")]),
    "label sets": (MANY, [TextExample("a good film in oslo", (0, 2)), TextExample("the film", ())]),
    "entities": (ENTITIES, [TaggedExample(("anna", "lives", "in", "oslo"), ("B-PER", "O", "O", "B-LOC")),
                            TaggedExample(("ben", "went"), ("B-PER", "O"))]),
    # Of the same length: transformers' loss lets padding be an answer, ours does not.
    "questions": (QUESTIONS, [QuestionExample("1", "where ?", "anna lives in oslo", ((14, "oslo"),)),
                              QuestionExample("2", "where ?", "anna went in oslo", ())]),
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.checkpoint(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def tokenizers(base: str) -> tuple[Any, Any]:
    """Ours and theirs, of one checkpoint."""
    return load_tokenizer(base), AutoTokenizer.from_pretrained(base)


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.checkpoint(tmp_path_factory.mktemp("distilled"), family="distilbert"))


def untrained(checkpoint: str, task: Task) -> PreTrainedModel:
    """Give every weight a random value of a size that makes clear decisions."""
    torch.manual_seed(0)
    model = load_model(checkpoint, task)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model.train(False)


def encoder(checkpoint: str, task: Task) -> Encoder:
    return Encoder(load_tokenizer(checkpoint), task, uses_types=True)


@settings(max_examples=60)
@given(first=WORDS, second=WORDS.filter(bool), window=st.integers(16, 40))  # no second text is no pair to them
def test_pairs_are_encoded_and_cut_as_by_transformers(
    tokenizers: tuple[Any, Any], first: list[str], second: list[str], window: int
) -> None:
    task = Task("text-classification", labels=("no", "yes"), window=window, stride=4, pairs=True)
    texts = " ".join(first), " ".join(second)
    (ours,) = Encoder(tokenizers[0], task, uses_types=True).windows([TextExample(texts[0], 0, texts[1])])
    theirs = tokenizers[1](*texts, truncation="longest_first", max_length=window)
    assert ours.ids.tolist() == theirs["input_ids"]
    assert ours.types.tolist() == theirs["token_type_ids"]


@settings(max_examples=60)
@given(words=WORDS.filter(bool), window=st.integers(20, 40), at=st.integers(0, 39))
def test_questions_are_windowed_and_answers_placed_as_by_transformers(
    tokenizers: tuple[Any, Any], words: list[str], window: int, at: int
) -> None:
    at %= len(words)
    context, start = " ".join(words), len(" ".join(words[:at])) + (at > 0)
    task = Task("question-answering", window=window, stride=6)
    question = QuestionExample("q", "where ?", context, ((start, words[at]),))
    ours = Encoder(tokenizers[0], task, uses_types=True).windows([question])
    theirs = tokenizers[1](
        question.question, context, truncation="only_second", max_length=window, stride=6,
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    assert [one.ids.tolist() for one in ours] == theirs["input_ids"]
    assert [one.types.tolist() for one in ours] == theirs["token_type_ids"]
    for number, one in enumerate(ours):
        places = [tuple(place) for place in one.places[:, :2].tolist() if place != [-1, -1]]
        mapping, sequence = theirs["offset_mapping"][number], theirs.sequence_ids(number)
        assert places == [tuple(pair) for pair, part in zip(mapping, sequence, strict=True) if part == 1]
        ends = [theirs.char_to_token(number, place, 1) for place in (start, start + len(words[at]) - 1)]
        assert one.targets.tolist() == ([0, 0] if None in ends else ends)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("kind", EXAMPLES)
def test_from_examples_to_loss_as_transformers_does_it(base: str, distilled: str, family: str, kind: str) -> None:
    task, examples = EXAMPLES[kind]
    checkpoint = base if family == "bert" else distilled
    model, tokenizer = untrained(checkpoint, task), AutoTokenizer.from_pretrained(checkpoint)
    windows = Encoder(load_tokenizer(checkpoint), task, uses_types=family == "bert").windows(examples)
    batch = collate(windows, CPU)
    inputs, labels = their_inputs(tokenizer, task, examples)
    assert batch.ids.tolist() == inputs["input_ids"].tolist()
    theirs = model(**inputs, **labels)
    ours = task_loss(task.name, output_of(model, batch).logits, batch)
    assert ours.item() == pytest.approx(theirs.loss.item(), rel=1e-5)


def their_inputs(tokenizer: Any, task: Task, examples: list[Example]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Encode as transformers' example scripts do."""
    if task.name == "token-classification":
        numbers = {name: i for i, name in enumerate(model_labels(task))}
        rows = []
        for one in examples:
            assert isinstance(one, TaggedExample)
            row = tokenizer(list(one.words), is_split_into_words=True)
            row["labels"] = [-100 if word is None else numbers[one.tags[word]] for word in row.word_ids()]
            rows.append(dict(row))
        inputs = dict(DataCollatorForTokenClassification(tokenizer)(rows))
        return inputs, {"labels": inputs.pop("labels")}
    if task.name == "question-answering":
        pairs = [(one.question, one.context) for one in examples if isinstance(one, QuestionExample)]
        inputs = dict(tokenizer(*map(list, zip(*pairs, strict=True)), padding=True, return_tensors="pt"))
        last = inputs["input_ids"].shape[1] - 2  # "oslo", before [SEP]
        positions = torch.tensor([last, 0])
        return inputs, {"start_positions": positions, "end_positions": positions}
    texts = [one for one in examples if isinstance(one, TextExample)]
    pairs = [one.pair for one in texts] if task.pairs else None
    inputs = dict(tokenizer([one.text for one in texts], pairs, padding=True, return_tensors="pt"))
    if not task.multi_label:
        return inputs, {"labels": torch.tensor([one.label for one in texts])}
    rows = [[float(i in one.label) for i in range(len(task.labels))] for one in texts if isinstance(one.label, tuple)]
    return inputs, {"labels": torch.tensor(rows)}


@pytest.mark.parametrize("kind", ["text", "pairs", "label sets"])
def test_classes_as_from_transformers_pipeline(base: str, kind: str) -> None:
    task, examples = EXAMPLES[kind]
    model, tokenizer = untrained(base, task), AutoTokenizer.from_pretrained(base)
    windows = encoder(base, task).windows(examples)
    logits = torch_predictor(model)(windows)
    ask = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)
    for number, one in enumerate(examples):
        assert isinstance(one, TextExample)
        (answer,) = ask([{"text": one.text, "text_pair": one.pair} if task.pairs else one.text])
        theirs = {entry["label"]: entry["score"] for entry in answer}
        values = torch.from_numpy(logits[number])
        ours = values.sigmoid() if task.multi_label else values.softmax(-1)
        assert [theirs[name] for name in task.labels] == pytest.approx(ours.tolist(), abs=1e-5)
        if task.multi_label:
            likely = tuple(i for i, name in enumerate(task.labels) if theirs[name] > 0.5)
            assert decode.label_sets(windows, logits, len(examples))[number] == likely
        else:
            best = decode.best_classes(windows, logits, len(examples))[number]
            assert task.labels[best] == max(theirs, key=lambda name: theirs[name])


def test_entities_as_from_transformers_pipeline(base: str) -> None:
    model, tokenizer = untrained(base, ENTITIES), AutoTokenizer.from_pretrained(base)
    ask = pipeline("token-classification", model=model, tokenizer=tokenizer, aggregation_strategy="first")
    found = 0
    for text in ("anna lives in oslo.", "clarax and ben went to romex", "a story , who lives in berlin ?"):
        pieces = split_words(load_tokenizer(base), text)
        sentence = TaggedExample(tuple(text[a:b] for a, b in pieces), ("O",) * len(pieces))
        windows = encoder(base, ENTITIES).windows([sentence])
        names = model_labels(ENTITIES)
        (tags,) = decode.best_tags(windows, torch_predictor(model)(windows), [sentence], names)
        ours = group_entities(tags, pieces)
        theirs = [{key: one[key] for key in ("entity_group", "start", "end")} for one in ask(text)]
        assert ours == theirs
        found += len(ours)
    assert found > 3


class _SameBatches(Trainer):
    """transformers' Trainer on our batches in our order: everything else is its own."""

    batches: list[dict[str, Any]]

    def get_train_dataloader(self) -> Any:
        return _Loader(self.batches)


class _Loader:
    def __init__(self, batches: list[dict[str, Any]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def test_fine_tuning_is_transformers_own_to_the_last_metric(base: str, tmp_path: Path) -> None:
    """The published defaults of fine-tuning (AdamW, linear decay, weight decay but on biases and norms, clipping at 1)
    give the weights that transformers' Trainer gives on the same batches, and so the same accuracy."""
    task, rate, epochs, size = ONE, 1e-3, 2.0, 16
    data = tiny.write_sentiment(tmp_path / "x.tsv", copies=4).read_text().splitlines()[1:]
    examples: list[Example] = [TextExample(line.split("\t")[0], int(line[-1])) for line in data]
    windows = encoder(base, task).windows(examples)
    plan = plan_batches([len(window.ids) for window in windows], size, epochs, seed=1)
    models = [load_model(base, task) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    training = Training(epochs=epochs, learning_rate=rate, batch_size=size, warmup=0.0, dropout=0.0)
    matrices = encoder_matrices(models[0])
    train.train(models[0], loop.Stage("teacher", task.name, training, 1, windows, matrices, {}), tmp_path)

    arguments = TrainingArguments(
        output_dir=str(tmp_path / "theirs"), learning_rate=rate, max_steps=len(plan), weight_decay=0.01,
        max_grad_norm=1.0, lr_scheduler_type="linear", report_to=[], save_strategy="no", disable_tqdm=True,
        logging_strategy="no", use_cpu=True, optim="adamw_torch", seed=1,
    )  # fmt: skip
    trainer = _SameBatches(model=models[1], args=arguments)
    trainer.batches = []
    for numbers in plan:
        one = collate([windows[i] for i in numbers], CPU)
        inputs = {"input_ids": one.ids, "attention_mask": one.attended, "token_type_ids": one.types}
        trainer.batches.append({**inputs, "labels": one.targets[:, 0]})
    trainer.train()
    # Two orders of summation, a few float32 roundings a step; a wrong rate or decay moves weights by about 1e-3.
    for (name, ours), theirs in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=2e-5), name
    scores = [evaluate(torch_predictor(model), windows, examples, task, name="x").scores for model in models]
    assert scores[0] == scores[1]
