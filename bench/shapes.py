"""The encoders that are measured: published sizes, random weights, any sparsity. Makes checkpoints, measures nothing.

`python -m bench.shapes MODEL SPARSITY FOLDER` writes one checkpoint; it is run in a process of its own, because torch
is large and the parent of a benchmark should be small.
"""

import json
import sys
from pathlib import Path

from compression.shapes import SHAPES as PUBLISHED
from compression.shapes import Shape

# The fixed seed of every checkpoint: a record can be made again.
SEED = 0
VOCABULARY = 30522
# Survivors get variance (GAIN^2 / survivors in a row), so that a layer changes what it is given at every sparsity: work
# left out should show in the comparison of logits. Larger gains make random networks chaotic, and then
# honest 8-bit rounding fails it too.
GAIN = 0.7


SHAPES = PUBLISHED | {
    "minilm": Shape("bert", 6, 384, 12, 1536),
    # For tests of the bench itself.
    "tiny": Shape("bert", 2, 64, 4, 128),
}


def make_checkpoint(name: str, sparsity: float, folder: Path) -> None:
    """Save a question-answering checkpoint: random weights, random zeros in the encoder's matrices, a vocabulary."""
    import torch
    from transformers import AutoConfig, AutoModelForQuestionAnswering

    from compression.checkpoint import encoder_matrices

    torch.manual_seed(SEED)
    shape = SHAPES[name]
    # CTranslate2's converter asks a BERT for the kind of positions, which transformers 5 no longer writes down.
    config = AutoConfig.for_model(
        shape.family, vocab_size=VOCABULARY, position_embedding_type="absolute", **shape.config()
    )
    model = AutoModelForQuestionAnswering.from_config(config)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for matrix in encoder_matrices(model).values():
            survivors = matrix.in_features * (1 - sparsity)
            matrix.weight.normal_(std=GAIN / survivors**0.5)
            matrix.weight[torch.rand_like(matrix.weight) < sparsity] = 0
            matrix.bias.normal_(std=0.02)  # a real model's are not zero either
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]", "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def tokenizer_json() -> str:
    """Make a tokenizer with as many tokens as the models have embeddings: letters first, the rest never met."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    words += [f"[unused{number}]" for number in range(VOCABULARY - len(words))]
    tokenizer = Tokenizer(WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = BertNormalizer(lowercase=True), BertPreTokenizer()
    return tokenizer.to_str()


if __name__ == "__main__":
    make_checkpoint(sys.argv[1], float(sys.argv[2]), Path(sys.argv[3]))
