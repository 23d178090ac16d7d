"""Small random checkpoints of dense weights, for transformers' pipelines and, through torch, for our service."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from service.models import Model
from service.windows import Floats, Ints, Windows
from tests.random_artifact import LABELS, tokenizer
from tests.service.fake import text_tokenizer

CLASSES = {
    "question-answering": BertForQuestionAnswering,
    "text-classification": BertForSequenceClassification,
    "token-classification": BertForTokenClassification,
}
WINDOW, STRIDE, POSITIONS = 32, 8, 64


def checkpoint(task: str, seed: int = 0, **config: Any) -> PreTrainedModel:
    """Make a model whose logits differ enough from token to token that no two spans tie."""
    torch.manual_seed(seed)
    labels = config.pop("labels", LABELS[task])
    made = CLASSES[task](
        BertConfig(
            vocab_size=tokenizer().get_vocab_size(),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=POSITIONS,
            initializer_range=0.4,
            id2label=dict(enumerate(labels)),
            label2id={label: number for number, label in enumerate(labels)},
            **config,
        )
    )
    made.train(False)
    return made


def fast_tokenizer(window: int = WINDOW) -> PreTrainedTokenizerFast:
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "cls", "sep", "pad", "mask")}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(), model_max_length=window, model_input_names=inputs, **names
    )


class Dense:
    """The `forward` of a service model: dense weights, sequence by sequence."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def __call__(self, input_ids: Ints, lengths: Ints, type_ids: Ints | None) -> Floats:
        assert type_ids is not None
        ends = np.cumsum(lengths)
        parts = [(input_ids[e - n : e], type_ids[e - n : e]) for e, n in zip(ends, lengths, strict=True)]
        return np.concatenate([self._one(ids, types) for ids, types in parts])

    def _one(self, ids: Ints, types: Ints) -> Floats:
        with torch.no_grad():
            output = self._model(
                input_ids=torch.tensor(ids[None], dtype=torch.long),
                token_type_ids=torch.tensor(types[None], dtype=torch.long),
            )
        if "logits" in output:
            rows = output["logits"]
            return np.asarray(rows.numpy()) if rows.ndim == 2 else np.asarray(rows[0].numpy())
        return np.stack([output["start_logits"][0].numpy(), output["end_logits"][0].numpy()], axis=1)


def served(folder: Path, task: str, model: PreTrainedModel, *, window: int = WINDOW, **options: Any) -> Model:
    """Return what our service has of `model`."""
    labels = tuple(model.config.id2label[i] for i in range(model.config.num_labels))
    labels = ("start", "end") if task == "question-answering" else labels
    windows = Windows(text_tokenizer(folder), window, STRIDE, POSITIONS)
    longest = 30 if task == "question-answering" else None
    return Model(task, task, labels, windows, longest, True, Dense(model), {}, **options)
