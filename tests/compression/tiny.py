"""Small real things for the compression tests: checkpoints with random weights, data files, recipes."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from compression import processes, prune
from compression.checkpoint import encoder_matrices
from compression.pattern import save_masks

POSITIVE = ("good", "great", "fine", "lovely", "superb")
NEGATIVE = ("bad", "awful", "dull", "poor", "weak")
PEOPLE = ("anna", "ben", "clara", "david")
PLACES = ("paris", "oslo", "berlin", "rome")
NEUTRAL = (
    "the",
    "film",
    "was",
    "and",
    "a",
    "story",
    "lives",
    "in",
    "went",
    "to",
    "who",
    "where",
    "does",
    "live",
    "?",
    ".",
)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def tokenizer() -> Tokenizer:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *"-.,?'"]
    words += [word for word in (*POSITIVE, *NEGATIVE, *PEOPLE, *PLACES, *NEUTRAL) if word not in words]
    made = Tokenizer(WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer = BertNormalizer(lowercase=True)
    made.pre_tokenizer = BertPreTokenizer()
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", words.index("[CLS]")), ("[SEP]", words.index("[SEP]"))],
    )
    return made


def checkpoint(folder: Path, *, family: str = "bert", layers: int = 2, hidden: int = 32, seed: int = 0) -> Path:
    """Save a random encoder with its tokenizer, as the hub has them."""
    torch.manual_seed(seed)
    made = tokenizer()
    vocabulary = made.get_vocab_size()
    model: PreTrainedModel
    if family == "bert":
        config = BertConfig(
            vocab_size=vocabulary, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=4,
            intermediate_size=2 * hidden, max_position_embeddings=64,
        )  # fmt: skip
        model = BertModel(config)
    else:
        distil = DistilBertConfig(
            vocab_size=vocabulary,
            dim=hidden,
            n_layers=layers,
            n_heads=4,
            hidden_dim=2 * hidden,
            max_position_embeddings=64,
        )
        model = DistilBertModel(distil)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
        model_input_names=["input_ids", *(["token_type_ids"] if family == "bert" else []), "attention_mask"],
    ).save_pretrained(folder)
    return folder


def write_sentiment(path: Path, copies: int = 8) -> Path:
    rows = [f"the film was {word}\t{label}" for label, words in enumerate((NEGATIVE, POSITIVE)) for word in words]
    rows += [f"a {word} story\t{label}" for label, words in enumerate((NEGATIVE, POSITIVE)) for word in words]
    path.write_text("sentence\tlabel\n" + "\n".join(rows * copies) + "\n")
    return path


def write_entities(path: Path, copies: int = 6) -> Path:
    sentences = [f"{person} PER\nlives O\nin O\n{place} LOC\n. O" for person in PEOPLE for place in PLACES]
    text = "-DOCSTART- O\n\n" + "\n\n".join(sentences * copies) + "\n"
    path.write_text(text.replace(" PER", " X X I-PER").replace(" LOC", " X X I-LOC").replace(" O", " X X O"))
    return path


def write_pairs(path: Path, copies: int = 2, *, wrong: int = 0) -> Path:
    """Pairs that are labelled by the second text, as MNLI lays them out; the first may say the opposite.

    wrong: every so many a label is; 0 is none.
    """
    seconds = [(word, label) for label, some in (("bad", NEGATIVE), ("good", POSITIVE)) for word in some]
    pairs = [(first, *second) for first in (*NEGATIVE[:2], *POSITIVE[:2]) for second in seconds]
    if wrong:
        turned = {"bad": "good", "good": "bad"}
        pairs = [(a, b, label if number % wrong else turned[label]) for number, (a, b, label) in enumerate(pairs)]
    rows = [f"{number}\tthe film was {a}\ta {b} story\t{label}" for number, (a, b, label) in enumerate(pairs)]
    path.write_text("index\tsentence1\tsentence2\tgold_label\n" + "\n".join(rows * copies) + "\n")
    return path


def write_label_sets(path: Path, copies: int = 24) -> Path:
    """Texts that name a person, a place, both or neither; the labels stand between semicolons."""
    people = [*((f"{person} went", "person") for person in PEOPLE[:2]), ("who went", "")]
    places = [*((f"to {place}", "place") for place in PLACES[:2]), ("to film", "")]
    texts = [(f"{a} {b}", f"{x};{y}".strip(";")) for a, x in people for b, y in places]
    path.write_text("text\tlabel\n" + "\n".join(f"{text}\t{labels}" for text, labels in texts * copies) + "\n")
    return path


def write_questions2(path: Path, copies: int = 4) -> Path:
    """Questions after a place, every third of which the context does not answer."""
    write_questions(path, copies)
    document = json.loads(path.read_text())
    for paragraph in document["data"][0]["paragraphs"][::3]:
        paragraph["context"] = paragraph["context"].split("lives in")[0] + "went to the film."
        paragraph["qas"][0] |= {"answers": [], "is_impossible": True}
    path.write_text(json.dumps(document))
    return path


def write_questions(path: Path, copies: int = 4) -> Path:
    """Questions after a place, which stands somewhere else in every other context."""
    paragraphs = []
    for number, (person, place) in enumerate((p, q) for p in PEOPLE for q in PLACES):
        context = ("the film was good. " if number % 2 else "") + f"{person} lives in {place}."
        answers = [{"text": place, "answer_start": context.index(place)}]
        qa = {"id": str(number), "question": f"where does {person} live?", "answers": answers}
        paragraphs.append({"context": context, "qas": [qa]})
    path.write_text(json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs * copies}]}))
    return path


RECIPE = """
name = "tiny"
checkpoint = "{checkpoint}"
seed = 3

[task]
name = "{task}"
{labels}
window = 32
stride = 8
max_answer_tokens = 8

[data]
dataset = "made up"
train = "{data}"
validation = "{data}"
{more}

[[golden]]
{golden}

[teacher]
epochs = {epochs}
learning_rate = 3e-3
batch_size = 16
dropout = 0.1

[prune]
sparsity = 0.8
end = 0.5
update_every = 2

[prune.training]
epochs = {epochs}
learning_rate = 3e-3
batch_size = 16
dropout = 0.1
gradient_accumulation = 2

[quantize.training]
epochs = 1
learning_rate = 3e-4
batch_size = 16
dropout = 0.0
freeze_embeddings = true

[[quantize.rewinds]]
epochs = 0.5
learning_rate = 1e-4
batch_size = 16
dropout = 0.0
"""


# What a task's recipe says besides its name: kinds of tasks that have a name of their own here.
KINDS = {"pairs": "text-classification", "label-sets": "text-classification", "no-answer": "question-answering"}


def recipe(task: str, base: Path, data: Path, *, epochs: float = 3) -> str:
    """Write the data file of a task, or a kind of `KINDS`, into `data`; return the text of a recipe for it.

    Pairs have a second set to be judged on, mismatched.data: smaller, and every third label is wrong.
    """
    writers = {
        "pairs": (
            write_pairs,
            'labels = ["bad", "good"]\npairs = true\nmetric = "matthews"',
            'text = "the film was bad"\ntext_pair = "a superb story"',
        ),
        "label-sets": (
            write_label_sets,
            'labels = ["place", "person"]\nmulti_label = true',
            'text = "anna went to oslo"',
        ),
        "no-answer": (
            write_questions2,
            "no_answer = true",
            'question = "where does anna live?"\ncontext = "anna went to the film."',
        ),
        "question-answering": (
            write_questions,
            "",
            'question = "where does anna live?"\ncontext = "anna lives in oslo."',
        ),
        "text-classification": (write_sentiment, 'labels = ["negative", "positive"]', 'text = "the story was superb"'),
        "token-classification": (write_entities, 'labels = ["PER", "LOC"]', 'text = "clara went to rome."'),
    }
    write, labels, golden = writers[task]
    file = write(data / f"{task}.data")
    if task == "pairs":
        write_pairs(data / "mismatched.data", copies=1, wrong=3)
    more = {
        "pairs": 'more_validation = [{split = "mismatched", file = "mismatched.data"}]',
        "label-sets": 'table = {separator = ";"}',
    }.get(task, "")
    name = KINDS.get(task, task)
    return RECIPE.format(
        checkpoint=base, task=name, labels=labels, data=file.name, more=more, golden=golden, epochs=epochs
    )


def write_text(path: Path, documents: int = 40) -> Path:
    """Plain text that can be learned: in every other document one person always lives in the same place."""
    pieces = []
    for number in range(documents):
        person, place = PEOPLE[number % 4], PLACES[number % 4]
        word = (POSITIVE, NEGATIVE)[number % 2][number % 5]
        pieces.append(f"{person} lives in {place}. {person} went to {place}.\nthe film was {word}. a {word} story.\n")
    path.write_text("\n".join(pieces))
    return path


LANGUAGE_RECIPE = """
name = "tiny-lm"
checkpoint = "{checkpoint}"
seed = 3

[task]
name = "masked-language-modelling"
window = 32
next_sentence = {next_sentence}

[text]
files = ["text.txt"]
validation = 0.2

[teacher]
steps = {steps}
learning_rate = 3e-3
batch_size = 8
dropout = 0.1

[prune]
sparsity = 0.8
end = 0.5
update_every = 2
reselect_until = 0.8

[prune.training]
steps = {steps}
learning_rate = 3e-3
batch_size = 8
warmup = 0.1
dropout = 0.1
schedule = "rewinding"
"""


def language_recipe(base: Path, data: Path, *, next_sentence: bool = False, steps: int = 40) -> str:
    """Write text.txt into `data` and return the text of a recipe that prunes a language model on it."""
    write_text(data / "text.txt")
    return LANGUAGE_RECIPE.format(checkpoint=base, next_sentence=str(next_sentence).lower(), steps=steps)


def transfer_recipe(task: str, sparse: Path, dense: Path, data: Path, *, epochs: float = 3) -> str:
    """Return the text of a recipe that transfers a sparse checkpoint to a task, with a teacher from a dense one."""
    text = recipe(task, sparse, data, epochs=epochs)
    before, after = text.index("[prune]"), text.index("[prune.training]")
    return (
        (text[:before] + text[after:])
        .replace("[prune.training]", "[transfer.training]")
        .replace("[teacher]", f'[teacher]\ncheckpoint = "{dense}"')
    )


def sparse_checkpoint(folder: Path, sparsity: float = 0.8, *, masks: bool = True, family: str = "bert") -> Path:
    """A random encoder with zeros in its matrices, with or without the mask file beside it."""
    checkpoint(folder, family=family, seed=1)
    model = AutoModel.from_pretrained(folder)
    matrices = encoder_matrices(model)
    chosen = prune.magnitude_masks(matrices, sparsity)
    prune.apply_masks(matrices, chosen)
    model.save_pretrained(folder)
    if masks:
        save_masks(chosen, folder)
    return folder


def watch_parts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return a list that gets the windows and the parts of every batch that is cut from now on."""
    cut: list[tuple[int, int]] = []
    take_parts = processes.take_parts

    def watched(numbers: Sequence[int], accumulation: int) -> list[list[int]]:
        parts = take_parts(numbers, accumulation)
        cut.append((len(numbers), len(parts)))
        return parts

    monkeypatch.setattr(processes, "take_parts", watched)
    return cut


class Stop(Exception):  # noqa: N818
    """What a stopped run ends with."""


def stopping(real: Callable[..., object], after: int) -> Callable[..., object]:
    """A function that does what `real` does, then raises Stop at the call after so many."""
    calls = iter(range(after))

    def stopped(*given: object) -> object:
        if next(calls, None) is None:
            raise Stop
        return real(*given)

    return stopped
