"""A masked language model in torch: how it is loaded, what it minimizes, how good it is.

B windows, T tokens, H hidden, V vocabulary. The logits [B, T, V] never exist as a whole: for 256 windows of 128
tokens they would take 4 GB, and training holds several such tensors.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm
from transformers import BertForPreTraining, DistilBertForMaskedLM, PreTrainedModel

from compression.batches import plan_evaluation
from compression.checkpoint import (
    CheckpointError,
    attention_kernel,
    check_encoder,
    encoder_matrices,
    load_config,
    load_weights,
    set_dropout,
)
from compression.masking import MaskedWindows
from compression.objective import Batch, collate, hidden_distance
from compression.recipe import Distillation, LanguageTask
from compression.token_losses import token_losses

# Tokens whose logits exist at a time: 31 MB a tensor at BERT's vocabulary, about what a CPU's last-level cache holds;
# on a GPU 250 MB, enough work for its kernels.
CHUNK_TOKENS = {"cpu": 256, "cuda": 2048}

Head = Callable[[Tensor], Tensor]


def load_language_model(
    checkpoint: str, task: LanguageTask, *, dropout: float = 0.0, new_heads: bool = False
) -> PreTrainedModel:
    """Load a checkpoint as BertForPreTraining or DistilBertForMaskedLM; `new_heads` may start at random.

    BERT keeps its pooler also where next sentences are not guessed: then pooler and next-sentence head are frozen.

    Raises:
        CheckpointError: an architecture the engine cannot run, a window longer than the model's positions, next
            sentences with DistilBERT, a missing head without `new_heads`, weights of the encoder that are missing.
    """
    config = load_config(checkpoint)
    if task.window > config.max_position_embeddings:
        raise CheckpointError(
            f"task.window is {task.window}; checkpoint {checkpoint!r} has {config.max_position_embeddings} positions"
        )
    bert = config.model_type == "bert"
    if task.next_sentence and not bert:
        raise CheckpointError(f"checkpoint {checkpoint!r} is a {config.model_type}: next_sentence is for bert alone")
    published = set_dropout(config, dropout)
    kind: Any = BertForPreTraining if bert else DistilBertForMaskedLM
    options = {"config": config, "attn_implementation": attention_kernel()}
    model, absent = load_weights(kind, checkpoint, options)
    check_encoder(model, absent, checkpoint)
    # The result is a model for others to train on: its configuration keeps the rates that it came with.
    model.config.update(published)
    needed = ("cls.", "bert.pooler") if task.next_sentence else ("cls.predictions.", "vocab_")
    missing = [key for key in absent if key.startswith(needed)]
    if missing and not new_heads:
        raise CheckpointError(
            f"checkpoint {checkpoint!r} lacks {', '.join(missing[:4])}: its language model's head must be trained "
            "first; give the recipe a [teacher] stage"
        )
    if bert and not task.next_sentence:
        for part in ("bert.pooler", "cls.seq_relationship"):
            model.get_submodule(part).requires_grad_(False)
    return model


def language_matrices(model: PreTrainedModel, task: LanguageTask) -> dict[str, nn.Linear]:
    """Return what is pruned: the encoder matrices, and the pooler where next sentences train it.

    As the authors' code prunes (every linear layer but the heads); transfer then trains the pooler freely again.
    """
    matrices = encoder_matrices(model)
    if task.next_sentence:
        pooler = model.base_model.get_submodule("pooler.dense")
        assert isinstance(pooler, nn.Linear)
        matrices["pooler"] = pooler
    return matrices


def token_head(model: PreTrainedModel) -> nn.Sequential:
    """Return the modules from hidden states [..., H] to token logits [..., V]."""
    if model.config.model_type == "bert":
        return nn.Sequential(model.get_submodule("cls.predictions"))
    names = ("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector")
    return nn.Sequential(*(model.get_submodule(name) for name in names))


class Body(nn.Module):
    """A language model that ends below its heads; all its parameters are registered, so wrappers see them all."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Wrap a model that `load_language_model` returned."""
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, hidden_states: bool = False) -> Any:
        """Return transformers' output: last_hidden_state [B, T, H], for BERT pooler_output [B, H]."""
        inputs = {"input_ids": batch.ids, "attention_mask": batch.attended}
        if getattr(self.model.config, "type_vocab_size", 0):
            inputs["token_type_ids"] = batch.types
        return self.model.base_model(**inputs, output_hidden_states=hidden_states)


@dataclass(frozen=True)
class LanguageLoss:
    """task * (MLM + NSP cross-entropy) + teacher * (T^2 KL of both) + hidden * distance of hidden states.

    MLM cross-entropy is the mean over masked tokens; its divergence the mean over tokens that are not padding, or over
    masked ones (`masked_only`): Prune Once for All (arXiv 2111.05754), section 3, with 0.5, 0.5, T = 2. Both of next
    sentences are means over windows. Without a teacher the loss is the cross-entropy alone. `model` is the student,
    whose heads are used; see `objective.hidden_distance` for the last term.
    """

    model: PreTrainedModel
    next_sentence: bool
    distillation: Distillation | None = None
    teacher: PreTrainedModel | None = None
    COUNTED: ClassVar[tuple[str, ...]] = ("masked", "compared", "attended", "windows")

    @property
    def compares_hidden(self) -> bool:
        """Whether the distance of hidden states is a part of the loss."""
        return self.teacher is not None and self.distillation is not None and self.distillation.hidden > 0

    def counts(self, batch: Batch) -> dict[str, int]:
        """Over how much each part of the loss is a mean: masked tokens, compared tokens, all tokens, windows."""
        masked, attended = int(_masked(batch).sum()), int(batch.lengths.sum())
        all_tokens = self.teacher is not None and self.distillation is not None and not self.distillation.masked_only
        compared = attended if all_tokens else masked
        return {"masked": masked, "compared": compared, "attended": attended, "windows": len(batch.ids)}

    def without_teacher(self) -> "LanguageLoss":
        """Return the cross-entropy alone."""
        return LanguageLoss(self.model, self.next_sentence)

    def __call__(
        self, body: nn.Module, batch: Batch, shares: Mapping[str, float] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch and its parts; `body` is the student's Body, perhaps wrapped.

        For a part of a larger batch `shares` are its shares of that one's `counts`: the losses of the parts add up.
        """
        shares = shares or dict.fromkeys(self.COUNTED, 1.0)
        weights = self.distillation or Distillation(task=1.0, teacher=0.0)
        teacher = self.teacher if self.distillation else None
        output = body(batch, hidden_states=weights.hidden > 0)
        with torch.no_grad():
            taught = Body(teacher)(batch, hidden_states=weights.hidden > 0) if teacher else None
        total, task, divergence = self._tokens(output, taught, batch, weights, shares)
        if self.next_sentence:
            logits = self.model.get_submodule("cls.seq_relationship")(output.pooler_output).float()
            pairs = functional.cross_entropy(logits, batch.targets[:, 0]) * shares["windows"]
            total, task = total + weights.task * pairs, task + pairs.detach()
            if teacher and taught is not None:
                with torch.no_grad():
                    expected = teacher.get_submodule("cls.seq_relationship")(taught.pooler_output).float()
                apart = divergence_sum(logits, expected, weights.temperature) / len(logits) * shares["windows"]
                total, divergence = total + weights.teacher * apart, divergence + apart.detach()
        figures = {"task_loss": task, "teacher_loss": divergence}
        if weights.hidden and taught is not None:
            distance = hidden_distance(output.hidden_states, taught.hidden_states, batch.attended) * shares["attended"]
            total = total + weights.hidden * distance
            figures["hidden_loss"] = distance.detach()
        return total, {"loss": total.detach(), **(figures if teacher else {"task_loss": task})}

    def _tokens(
        self, output: Any, taught: Any, batch: Batch, weights: Distillation, shares: Mapping[str, float]
    ) -> tuple[Tensor, Tensor, Tensor]:
        masked = _masked(batch)
        compared = masked if taught is None or weights.masked_only else _attended(batch)
        # Which tokens is told by the host: to ask the GPU is to wait for it.
        places, labelled = np.flatnonzero(compared), masked[compared]
        at = torch.from_numpy(places).to(batch.ids.device)
        states = output.last_hidden_state.flatten(0, 1).index_select(0, at)
        expected = None if taught is None else taught.last_hidden_state.flatten(0, 1).index_select(0, at)
        head, given = token_head(self.model), batch.targets.flatten().index_select(0, at)
        teacher_head = token_head(self.teacher) if taught is not None and self.teacher else None
        shared = (shares["masked"] / max(1, int(masked.sum())), shares["compared"] / max(1, len(places)))
        weighted = (weights.task * shared[0], weights.teacher * shared[1])
        parts = [torch.zeros(2, device=states.device)]

        def loss_of(chunk: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
            answers = None if teacher_head is None or expected is None else teacher_head(expected[chunk])
            sums, slope = token_losses(logits, answers, given[chunk], labelled[chunk], weighted, weights.temperature)
            parts.append(sums)
            return weighted[0] * sums[0] + weighted[1] * sums[1], slope

        trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
        total = chunked_loss(head, loss_of, states, trained, CHUNK_TOKENS[states.device.type])
        task, divergence = (share * part for share, part in zip(shared, torch.stack(parts).sum(dim=0), strict=True))
        return total, task, divergence


def _masked(batch: Batch) -> NDArray[np.bool_]:
    """Return which tokens [B, T] are to be guessed; [CLS], which holds the next-sentence label, is none."""
    masked = batch.given.copy()
    masked[:, 0] = False
    return masked


def _attended(batch: Batch) -> NDArray[np.bool_]:
    """Return which tokens [B, T] are not padding."""
    found: NDArray[np.bool_] = np.arange(batch.ids.shape[1]) < batch.lengths[:, None]
    return found


def divergence_sum(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), summed over the rows of [N, V]."""
    wanted = functional.log_softmax(teacher / temperature, dim=-1)
    found = functional.log_softmax(student / temperature, dim=-1)
    return functional.kl_div(found, wanted, reduction="sum", log_target=True) * temperature**2


def chunked_loss(
    head: Head,
    loss_of: Callable[[slice, Tensor], tuple[Tensor, Tensor]],
    states: Tensor,
    parameters: list[nn.Parameter],
    size: int,
) -> Tensor:
    """Return the sum of the losses of slices of `size` rows of `states` [N, H], whose logits are `head(states[slice])`.

    `loss_of(slice, logits)` returns the loss of a slice and its gradient by the logits, without autograd. The gradients
    of `states` and `parameters` are computed slice by slice in the forward pass, so what a slice needs in between is
    freed before the next one, and nothing is computed twice.
    """
    result: Tensor = _ChunkedLoss.apply(head, loss_of, size, states, *parameters)  # type: ignore[no-untyped-call]
    return result


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, head: Any, loss_of: Any, size: int, states: Tensor, *parameters: Tensor) -> Tensor:
        leaf = states.detach().requires_grad_()
        gradients = [torch.zeros_like(tensor) for tensor in (states, *parameters)]
        total = torch.zeros((), device=states.device)
        for start in range(0, len(states), size):
            chunk = slice(start, start + size)
            with torch.enable_grad():
                part = leaf[chunk]
                logits = head(part)
            loss, slope = loss_of(chunk, logits.detach())
            found = torch.autograd.grad(logits, (part, *parameters), slope, allow_unused=True)
            total += loss
            for into, gradient in zip([gradients[0][chunk], *gradients[1:]], found, strict=True):
                if gradient is not None:
                    into += gradient
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, None, *(gradient * slope for gradient in ctx.saved_tensors))


@torch.no_grad()
def judge(
    model: PreTrainedModel, windows: MaskedWindows, task: LanguageTask, *, name: str, batch_size: int = 32
) -> dict[str, float]:
    """Return loss, perplexity exp(loss) and accuracy on masked tokens, and next-sentence accuracy where it is trained.

    The masks are those of epoch 0, so two models are asked the same.
    """
    model.train(False)
    head = token_head(model)
    loss, right, tokens, pairs = 0.0, 0, 0, 0
    for numbers in tqdm(plan_evaluation(windows.lengths.tolist(), batch_size), desc=name, mininterval=1.0):
        batch = collate([windows[number] for number in numbers], model.device)
        output = Body(model)(batch)
        masked = torch.from_numpy(_masked(batch)).to(model.device)
        size = CHUNK_TOKENS[model.device.type]
        hidden, targets = output.last_hidden_state[masked], batch.targets[masked]
        for states, wanted in zip(torch.split(hidden, size), torch.split(targets, size), strict=True):
            logits = head(states)
            loss += functional.cross_entropy(logits, wanted, reduction="sum").item()
            right += int((logits.argmax(dim=-1) == wanted).sum())
        tokens += len(targets)
        if task.next_sentence:
            guesses = model.get_submodule("cls.seq_relationship")(output.pooler_output).argmax(dim=-1)
            pairs += int((guesses == batch.targets[:, 0]).sum())
    scores = {"loss": loss / tokens, "perplexity": math.exp(min(loss / tokens, 700.0)), "accuracy": right / tokens}
    return scores | ({"next_sentence_accuracy": pairs / len(windows)} if task.next_sentence else {})
