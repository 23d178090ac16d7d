"""How does a small BERT become a large one that answers the same? Wider by copies, deeper by layers that do nothing.

Function-preserving initialization as in Net2Net (arXiv 1511.05641) and bert2BERT (arXiv 2110.07143). Different here:
copies of a feature are read by different outputs (`spread`), which breaks the symmetry that bert2BERT's advanced
initialization is for, and keeps the function; depth is exact too, where bert2BERT stacks layers.
"""

from dataclasses import dataclass
from typing import Final

import torch
import transformers
from torch import Tensor, nn
from tqdm import tqdm
from transformers import BertConfig, DistilBertConfig, PretrainedConfig, PreTrainedModel

from compression.checkpoint import CheckpointError, embedding_tables, encoder_layers, encoder_matrices
from compression.shapes import Shape
from compression.spread import Spread, head_spread, neuron_spread, residual_spread, score_factor

_HEADS: Final = {
    "ForQuestionAnswering": "qa_outputs",
    "ForSequenceClassification": "classifier",
    "ForTokenClassification": "classifier",
}
# The line through 0 that, cut at -1 and 1, lies nearest to tanh everywhere: at most 0.113 off.
_TANH_SLOPE: Final = 0.71


def shape_of(config: PretrainedConfig) -> Shape:
    """Return the shape of a BERT or DistilBERT configuration."""
    ffn = config.intermediate_size if config.model_type == "bert" else config.hidden_dim
    return Shape(config.model_type, config.num_hidden_layers, config.hidden_size, config.num_attention_heads, ffn)


@dataclass(frozen=True)
class Spreads:
    """How each kind of feature lies in the large model; `generator` draws who reads which copy."""

    residual: Spread
    heads: Spread
    ffn: Spread
    score: Tensor
    generator: torch.Generator

    def matrix(self, name: str, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Widen one of a layer's six matrices [out, in] and its bias [out]; `name` is the artifact's."""
        reads, writes = {
            "attention_output": (self.heads, self.residual),
            "ffn_in": (self.residual, self.ffn),
            "ffn_out": (self.ffn, self.residual),
        }.get(name, (self.residual, self.heads))
        wide, wide_bias = reads.read(writes.write(weight), self.generator), writes.write(bias)
        if name in ("query", "key"):
            wide, wide_bias = wide * self.score[:, None], wide_bias * self.score
        return wide, wide_bias


@torch.no_grad()
def grow(model: PreTrainedModel, shape: Shape, *, seed: int = 42) -> PreTrainedModel:
    """Return a model of `shape` that computes what `model`, a BERT encoder with or without a task head, does.

    Equal up to float rounding, but for: a width that is no multiple of the small one (LayerNorm sees other statistics);
    DistilBERT has no token types (equal where all are 0) and ReLU where BERT's classifiers have tanh.

    Raises:
        CheckpointError: `model` is no BERT, or larger than `shape` somewhere.
    """
    check_growth(model.config, shape)
    small = shape_of(model.config)
    large: PreTrainedModel = _class_for(model, shape)(_config_for(model.config, shape))
    large.train(False)
    sizes = small.hidden // small.heads, shape.hidden // shape.heads
    spreads = Spreads(
        residual_spread(small.hidden, shape.hidden),
        head_spread(small.heads, sizes[0], shape.heads, sizes[1]),
        neuron_spread(small.ffn, shape.ffn),
        score_factor(*sizes).repeat(shape.heads),
        torch.Generator().manual_seed(seed),
    )
    _grow_embeddings(model, large, spreads.residual)
    _grow_layers(model, large, spreads)
    _grow_head(model, large, spreads)
    return large


def check_growth(config: PretrainedConfig, shape: Shape) -> None:
    """Raise CheckpointError unless a model of this configuration can grow to `shape`."""
    if config.model_type != "bert":
        raise CheckpointError(f"a {config.model_type} cannot be grown; the small model must be a bert")
    small = shape_of(config)
    pairs = {
        "layers": (small.layers, shape.layers),
        "hidden": (small.hidden, shape.hidden),
        "heads": (small.heads, shape.heads),
        "head size": (small.hidden // small.heads, shape.hidden // shape.heads),
        "ffn": (small.ffn, shape.ffn),
    }
    lower = [f"{name} {there} < {here}" for name, (here, there) in pairs.items() if there < here]
    if lower:
        raise CheckpointError(f"{small} cannot grow to {shape}: {', '.join(lower)}; nothing may get smaller")
    if shape.hidden % shape.heads:
        raise CheckpointError(f"{shape}: hidden must be a multiple of heads")


def inexact(model: PreTrainedModel, shape: Shape) -> list[str]:
    """Say why a grown model does not compute exactly what the small one does; empty where it does."""
    reasons = []
    if shape.hidden % model.config.hidden_size:
        reasons.append(
            f"{shape.hidden} is no multiple of {model.config.hidden_size}: LayerNorm sees slightly other statistics"
        )
    if shape.family == "distilbert":
        if model.config.type_vocab_size > 1:
            reasons.append("DistilBERT has no token types: every token counts as one of the first text")
        if type(model).__name__.endswith("ForSequenceClassification"):
            reasons.append("DistilBERT's classifier has ReLU where BERT's has tanh: three straight lines stand for it")
    return reasons


def _class_for(model: PreTrainedModel, shape: Shape) -> type[PreTrainedModel]:
    name = type(model).__name__.removeprefix("Bert")
    family = {"bert": "Bert", "distilbert": "DistilBert"}[shape.family]
    kind: type[PreTrainedModel] = getattr(transformers, family + (name if name in _HEADS else "Model"))
    return kind


def _config_for(config: PretrainedConfig, shape: Shape) -> PretrainedConfig:
    same = ("vocab_size", "max_position_embeddings", "pad_token_id", "problem_type", "id2label", "label2id")
    shared = {name: getattr(config, name) for name in same}
    if shape.family == "bert":
        return BertConfig(
            **shared, num_hidden_layers=shape.layers, hidden_size=shape.hidden, num_attention_heads=shape.heads,
            intermediate_size=shape.ffn, hidden_act=config.hidden_act, layer_norm_eps=config.layer_norm_eps,
            type_vocab_size=config.type_vocab_size,
        )  # fmt: skip
    return DistilBertConfig(
        **shared, n_layers=shape.layers, dim=shape.hidden, n_heads=shape.heads, hidden_dim=shape.ffn,
        activation=config.hidden_act,
    )  # fmt: skip


def _grow_embeddings(model: PreTrainedModel, large: PreTrainedModel, residual: Spread) -> None:
    tables: dict[str, Tensor] = {name: table.weight for name, table in embedding_tables(model).items()}
    targets = embedding_tables(large)
    if "embeddings.type" not in targets:
        tables["embeddings.position"] = tables["embeddings.position"] + tables["embeddings.type"][0]
    for name, table in targets.items():
        table.weight.copy_(residual.write(tables[name].T).T)
    old, wide = (one.base_model.get_submodule("embeddings.LayerNorm") for one in (model, large))
    _fill(wide, residual.norm(*_values(old)))


def _grow_layers(model: PreTrainedModel, large: PreTrainedModel, spreads: Spreads) -> None:
    """Widen every layer, and put layers that do nothing yet behind some or all of them.

    BERT's LayerNorm comes after the addition, so a layer that adds nothing still normalizes what comes in, and two in
    a row are not one. But what has mean 0 and variance 1 already stays what it is: the LayerNorm before the new layers
    loses its scale and shift, and the last new one takes them over.
    """
    sources, targets = encoder_matrices(model), encoder_matrices(large)
    first = 0
    for layer, new in enumerate(tqdm(_new_layers(model, large), desc="layers", unit="layer")):
        for name in _MATRICES:
            source = _values(sources[f"encoder.{layer}.{name}"])
            _fill(targets[f"encoder.{first}.{name}"], spreads.matrix(name, *source))
        for old, wide in zip(_norms(model, layer), _norms(large, first), strict=True):
            _fill(wide, spreads.residual.norm(*_values(old)))
        if new:
            _add_idle_layers(large, first, new)
        first += 1 + new


_MATRICES: Final = ("query", "key", "value", "attention_output", "ffn_in", "ffn_out")


def _new_layers(model: PreTrainedModel, large: PreTrainedModel) -> list[int]:
    """How many new layers come behind each old one: as equal as can be, earlier ones first."""
    old, wanted = len(encoder_layers(model)), len(encoder_layers(large))
    return [wanted // old - 1 + (number < wanted % old) for number in range(old)]


def _add_idle_layers(large: PreTrainedModel, first: int, new: int) -> None:
    """Make the `new` layers behind layer `first` ones that add nothing yet: they look as it does, and say nothing.

    Their two outputs are zero; what comes before those is not, so that they have a gradient. They read a normalized
    input without scale and shift, so their matrices take these in.
    """
    matrices = encoder_matrices(large)
    inner, outer = _norms(large, first)
    after_attention, after = _values(inner), _values(outer)
    for number in range(first + 1, first + 1 + new):
        for name in _MATRICES:
            weight, bias = _values(matrices[f"encoder.{first}.{name}"])
            if name in ("attention_output", "ffn_out"):
                weight, bias = torch.zeros_like(weight), torch.zeros_like(bias)
            else:
                scale, shift = after_attention if name == "ffn_in" else after
                weight, bias = weight * scale, bias + weight @ shift
            _fill(matrices[f"encoder.{number}.{name}"], (weight, bias))
        for norm in _norms(large, number):
            _fill(norm, (torch.ones_like(after[0]), torch.zeros_like(after[1])))
    _fill(outer, (torch.ones_like(after[0]), torch.zeros_like(after[1])))
    _fill(_norms(large, first + new)[1], after)


def _grow_head(model: PreTrainedModel, large: PreTrainedModel, spreads: Spreads) -> None:
    """Widen what `large` has of pooler and task head: what they read is spread, what they answer is not."""
    residual, generator = spreads.residual, spreads.generator
    pooled = neuron_spread(residual.narrow, len(residual.source))
    pooler, classifies = "pooler.dense", type(large).__name__.endswith("ForSequenceClassification")
    if getattr(large.base_model, "pooler", None) is not None:
        weight, bias = _values(model.base_model.get_submodule(pooler))
        wide = residual.read(pooled.write(weight), generator), pooled.write(bias)
        _fill(large.base_model.get_submodule(pooler), wide)
    elif classifies:
        _grow_relu_head(model, large, residual, generator)
        return
    name = next((head for kind, head in _HEADS.items() if type(large).__name__.endswith(kind)), None)
    if name:
        weight, bias = _values(model.get_submodule(name))
        _fill(large.get_submodule(name), ((pooled if classifies else residual).read(weight, generator), bias))


def _grow_relu_head(
    model: PreTrainedModel, large: PreTrainedModel, residual: Spread, generator: torch.Generator
) -> None:
    """Two ReLUs for each tanh: tanh(z) is about ReLU(sz + 1) - ReLU(sz - 1) - 1, a line that is cut at -1 and 1."""
    if len(residual.source) < 2 * residual.narrow:
        raise CheckpointError(
            f"a classifier {residual.narrow} wide cannot grow to a DistilBERT {len(residual.source)} wide: its head "
            "needs two neurons for each, grow to twice the width at least"
        )
    weight, bias = _values(model.base_model.get_submodule("pooler.dense"))
    neuron = torch.arange(len(residual.source))
    upper = neuron // residual.narrow % 2 == 0
    pairs = neuron_spread(residual.narrow, len(neuron))
    read = residual.read(pairs.write(_TANH_SLOPE * weight), generator)
    shift = torch.where(upper, 1.0, -1.0)
    _fill(large.get_submodule("pre_classifier"), (read, _TANH_SLOPE * pairs.write(bias) + shift))
    weight, bias = _values(model.get_submodule("classifier"))
    plus, minus = (
        Spread(residual.narrow, torch.where(side, pairs.source, -1)).read(weight, generator) for side in (upper, ~upper)
    )
    _fill(large.get_submodule("classifier"), (plus - minus, bias - weight.sum(dim=1)))


def _norms(model: PreTrainedModel, number: int) -> tuple[nn.Module, nn.Module]:
    """Return the two LayerNorms of a layer, after attention and after the feed-forward part."""
    bert = model.config.model_type == "bert"
    paths = ("attention.output.LayerNorm", "output.LayerNorm") if bert else ("sa_layer_norm", "output_layer_norm")
    layer = encoder_layers(model)[number]
    return layer.get_submodule(paths[0]), layer.get_submodule(paths[1])


def _values(module: nn.Module) -> tuple[Tensor, Tensor]:
    """Return copies of a module's weight and bias."""
    return module.get_parameter("weight").clone(), module.get_parameter("bias").clone()


def _fill(module: nn.Module, values: tuple[Tensor, Tensor]) -> None:
    for name, value in zip(("weight", "bias"), values, strict=True):
        module.get_parameter(name).copy_(value)
