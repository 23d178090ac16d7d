"""Small real things for the compression tests: checkpoints with random weights, data files, recipes."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

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


def recipe(task: str, base: Path, data: Path, *, epochs: float = 3) -> str:
    """Write the data file of a task into `data` and return the text of a recipe that trains on it."""
    writers = {
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
    return RECIPE.format(checkpoint=base, task=task, labels=labels, data=file.name, golden=golden, epochs=epochs)
