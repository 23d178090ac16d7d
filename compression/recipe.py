"""What is to be done: a recipe as frozen dataclasses; `read_recipe` fills them, `recipe_rules` says with what."""

import re
from dataclasses import dataclass, field

LANGUAGE_TASK = "masked-language-modelling"
# How the embeddings of words are stored, in the order of engine.artifact.EMBEDDINGS.
STORED = ("int8", "product")


class RecipeError(ValueError):
    """A recipe that cannot be run; the message says which key, its value, and what is allowed."""


@dataclass(frozen=True)
class Task:
    """What the model answers. `labels` are class names, or entity groups for token classification.

    Text classification: `pairs` reads two texts, `multi_label` lets each label hold or not by itself, `metric` is the
    headline among the scores (empty: accuracy, or micro F1 for multi-label). Question answering: `no_answer` lets the
    model say that the context does not answer, where [CLS] beats the best span by more than `no_answer_threshold`.
    """

    name: str
    labels: tuple[str, ...] = ()
    window: int = 128
    stride: int = 32
    max_answer_tokens: int = 30
    pairs: bool = False
    multi_label: bool = False
    metric: str = ""
    no_answer: bool = False
    no_answer_threshold: float = 0.0


@dataclass(frozen=True)
class Source:
    """A data set to credit in the model card."""

    name: str
    licence: str
    source: str


@dataclass(frozen=True)
class Table:
    """How a table of texts is read; columns that are not named are called as in GLUE's files.

    `header = false`: the columns are called "1", "2", ... `separator` stands between the labels of a multi-label text.
    `bad_lines` may be skipped, and are counted: GLUE's QQP has some that are broken in two.
    """

    text: str = ""
    text_pair: str = ""
    label: str = ""
    header: bool = True
    separator: str = ","
    bad_lines: int = 0


@dataclass(frozen=True)
class Validation:
    """One more set to judge the finished model on, besides the one that gives the headline."""

    split: str
    file: str


@dataclass(frozen=True)
class Unlabelled:
    """Texts of which so many sentences join what sparse models distil on, see `compression.unlabelled`.

    Of SQuAD files only articles whose field `source` is in `sources`, where any are named.
    """

    files: tuple[str, ...]
    sentences: int
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Data:
    """Files, relative to the data folder given on the command line, or sets on the hub (`hub:...`); their credits.

    Articles of a SQuAD file whose field `source` is in `leave_out` are not trained on: a domain to be judged on.
    `unlabelled` texts are for classification of texts and tokens.
    """

    dataset: str
    train: str
    validation: str
    split: str = "dev"
    more_validation: tuple[Validation, ...] = ()
    table: Table = field(default_factory=Table)
    train_limit: int = 0
    leave_out: tuple[str, ...] = ()
    validation_limit: int = 0
    unlabelled: Unlabelled | None = None
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True)
class Text:
    """Plain text of a language model, see `compression.text`, and how it is cut into windows.

    `files` lie in the data folder. `validation` is the share of documents that is held out, `short` the share of
    windows that are cut short. `documents` (0 = all) and `validation_windows` (0 = all) limit the work.
    """

    files: tuple[str, ...]
    validation: float = 0.05
    short: float = 0.1
    documents: int = 0
    validation_windows: int = 0
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True)
class LanguageTask:
    """Guess masked tokens in windows of up to `window` tokens; BERT may also guess whether two segments follow."""

    name: str
    window: int = 128
    next_sentence: bool = False
    masked: float = 0.15


@dataclass(frozen=True, kw_only=True)
class Training:
    """Hyperparameters of one training run with AdamW; its length is `epochs` or `steps`, one of the two.

    `schedule` of the learning rate, after a linear warm-up: "linear" decays to zero; "cyclic" decays to `lowest_rate`
    and begins again at every epoch of `rewind_epochs`; "rewinding" follows the masks, see `schedules`.
    """

    learning_rate: float
    epochs: float = 0.0
    steps: int = 0
    batch_size: int = 32
    warmup: float = 0.1
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0
    dropout: float = 0.1
    freeze_embeddings: bool = False
    gradient_accumulation: int = 1
    mixed_precision: str = "no"
    schedule: str = "linear"
    rewind_epochs: tuple[float, ...] = ()
    lowest_rate: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TeacherTraining(Training):
    """The dense teacher: trained from `checkpoint` (default: the recipe's own).

    Without `epochs` and `steps` the checkpoint is taken as it is: it must be fine-tuned already.
    """

    learning_rate: float = 0.0
    checkpoint: str = ""

    @property
    def trains(self) -> bool:
        """Whether there is anything to train."""
        return self.epochs > 0 or self.steps > 0


@dataclass(frozen=True)
class Distillation:
    """Weights of the loss: task * cross-entropy + teacher * T^2 KL(teacher || student), see `objective`.

    `hidden` weighs the distance from the teacher's hidden states, see `objective.hidden_distance`. For language models
    alone, `masked_only` compares predictions where a token is masked, not everywhere.
    """

    task: float = 0.5
    teacher: float = 0.5
    temperature: float = 2.0
    hidden: float = 0.0
    masked_only: bool = False


@dataclass(frozen=True)
class Fisher:
    """Second-order statistics: m gradients of batches, blocks of B weights, damping; see `fisher` and `surgeon`."""

    gradients: int = 1024
    batch_size: int = 16
    block: int = 50
    damping: float = 1e-7
    recomputations: int = 1


@dataclass(frozen=True)
class Prune:
    """Gradual pruning: which weights go, in which pattern, when; after the last update the masks are frozen.

    The sparsity rises on a cubic curve from `initial` to `sparsity`, between two shares of the steps or at the epochs
    `at_epochs`. `reselect_until`, a share of the steps: until then a dropped weight keeps its value aside, and wherever
    masks are chosen it competes with that and may come back; 0 = what is dropped is gone. `keep_layers` names the
    encoder layers that the student keeps; empty is all.
    """

    sparsity: float
    training: Training
    distillation: Distillation = field(default_factory=Distillation)
    criterion: str = "magnitude"
    scope: str = "matrix"
    pattern: str = "unstructured"
    initial: float = 0.0
    start: float = 0.0
    end: float = 0.7
    update_every: int = 20
    at_epochs: tuple[float, ...] = ()
    reselect_until: float = 0.0
    fisher: Fisher = field(default_factory=Fisher)
    keep_layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Transfer:
    """Training a sparse checkpoint on the task with its pattern locked, distilled from the dense task teacher."""

    training: Training
    distillation: Distillation = field(default_factory=Distillation)


@dataclass(frozen=True)
class Quantize:
    """Quantization-aware training with the pattern locked; each rewind trains on with the learning rate restarted.

    embeddings: how words are stored, "int8" or "product" (compression/product.py); "product" needs frozen embeddings.
    """

    training: Training
    distillation: Distillation = field(default_factory=Distillation)
    rewinds: tuple[Training, ...] = ()
    embeddings: str = "int8"


@dataclass(frozen=True)
class Golden:
    """An input that the finished model is asked at export; a server asks it again at load and compares."""

    text: str = ""
    text_pair: str = ""
    question: str = ""
    context: str = ""


@dataclass(frozen=True)
class Recipe:
    """A task model, in one of two forms: `prune` a dense checkpoint on the task, or `transfer` a sparse one to it."""

    name: str
    checkpoint: str
    task: Task
    data: Data
    teacher: TeacherTraining
    quantize: Quantize
    prune: Prune | None = None
    transfer: Transfer | None = None
    seed: int = 42
    golden: tuple[Golden, ...] = ()

    def stages(self) -> tuple[tuple[str, Training], ...]:
        """Every round of training with its name, in order."""
        return (
            *((("teacher", self.teacher),) if self.teacher.trains else ()),
            *((("prune", self.prune.training),) if self.prune else ()),
            *((("transfer", self.transfer.training),) if self.transfer else ()),
            ("quantize", self.quantize.training),
            *((f"rewind-{number}", rewind) for number, rewind in enumerate(self.quantize.rewinds, start=1)),
        )


@dataclass(frozen=True)
class LanguageRecipe:
    """A sparse language model: a teacher is prepared on the text, or good as it is; a copy of it is pruned."""

    name: str
    checkpoint: str
    task: LanguageTask
    text: Text
    prune: Prune
    teacher: TeacherTraining | None = None
    seed: int = 42

    def stages(self) -> tuple[tuple[str, Training], ...]:
        """Every round of training with its name, in order."""
        prepared = (("teacher", self.teacher),) if self.teacher and self.teacher.trains else ()
        return (*prepared, ("prune", self.prune.training))


def n_of_m(pattern: str) -> tuple[int, int] | None:
    """Return (N, M) of a pattern that keeps N of M neighbours, e.g. "2:4"; None for any other text."""
    found = re.fullmatch(r"([1-9]\d?):([1-9]\d?)", pattern)
    return (int(found[1]), int(found[2])) if found else None


def metrics_of(task: Task) -> tuple[str, ...]:
    """Name the scores of a text classification; the first is the headline where the recipe names none."""
    if task.multi_label:
        return ("micro_f1", "macro_f1", "subset_accuracy")
    return ("accuracy", "f1", "matthews") if len(task.labels) == 2 else ("accuracy",)
