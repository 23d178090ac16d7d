"""What a recipe would do, said before it does it: steps, tokens, memory, disk, and the time from a few real steps."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic

import psutil
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compression import processes, prune
from compression.batches import plan_batches
from compression.checkpoint import encoder_matrices, load_model, model_labels
from compression.encode import Window
from compression.evaluate import torch_predictor
from compression.files import check_room, free_bytes, missing_bytes, shown_bytes
from compression.layers import keep_layers
from compression.loop import Loop, Stage, make_optimizer, open_loop
from compression.objective import collate, output_of
from compression.quantize import quantize_model
from compression.recipe import Distillation, Prune, Recipe, Training
from compression.run import Prepared, seen_once
from compression.teacher import live_teacher

# A timed step on a CPU has about so many tokens: a second or so for a small model, some for BERT-Large. A GPU is timed
# on whole batches, it is not busy with less.
TRIAL_TOKENS = 1024
# The best of so many steps counts, after one that warms up.
TRIALS = 2
# Weights, gradients and Adam's two moments are float32.
FLOAT = 4


@dataclass(frozen=True)
class Round:
    """One round of training as it would be: `tokens` with padding, `windows` the most that a part of a batch holds."""

    name: str
    training: Training
    distillation: Distillation | None
    quantized: bool
    sparse: bool
    live: bool
    steps: int
    tokens: int
    windows: int

    @property
    def parts(self) -> int:
        """Parts of all batches: each is a forward and a backward pass."""
        return self.steps * self.training.gradient_accumulation

    @property
    def compares_hidden(self) -> bool:
        """Whether the student is compared with the teacher's hidden states too."""
        return self.distillation is not None and self.distillation.hidden > 0


@dataclass(frozen=True)
class Cost:
    """What a round costs: seconds = fixed x parts of batches + per_token x tokens; bytes by what holds them."""

    fixed: float
    per_token: float
    memory: dict[str, int]

    def seconds(self, planned: Round) -> float:
        """Return the estimated time of a round."""
        return self.fixed * planned.parts + self.per_token * planned.tokens


def plan_rounds(run: Prepared) -> list[Round]:
    """Return every round of a recipe on its windows, in order."""
    recipe = run.recipe
    rounds: list[Round] = []
    for number, (name, training) in enumerate(recipe.stages(), start=0 if recipe.teacher.trains else 1):
        distillation = _distillation(recipe, name)
        windows = run.windows_of(distillation)
        lengths = [len(window.ids) for window in windows]
        plan = plan_batches(lengths, training.batch_size, training.epochs, recipe.seed + number, training.steps)
        tokens = sum(len(batch) * max(lengths[i] for i in batch) for batch in plan)
        # As in `run`: windows that are seen once are taught live, unless an earlier round kept the teacher's logits;
        # hidden states always are.
        once = seen_once(training, len(windows))
        again = not once or any(r.distillation and not r.live for r in rounds)
        live = distillation is not None and (distillation.hidden > 0 or not again)
        most = math.ceil(training.batch_size / (training.gradient_accumulation * processes.state().num_processes))
        quantized, sparse = name not in ("teacher", "prune", "transfer"), name != "teacher"
        rounds.append(
            Round(name, training, distillation, quantized, sparse, live, len(plan), tokens, min(most, len(windows)))
        )
    return rounds


def _distillation(recipe: Recipe, stage: str) -> Distillation | None:
    given = {"teacher": None, "prune": recipe.prune, "transfer": recipe.transfer}.get(stage, recipe.quantize)
    return given.distillation if given else None


def describe(run: Prepared) -> list[str]:
    """Say what a run would do and what it needs, from a few timed steps of every round; nothing is written."""
    recipe = run.recipe
    lengths = [len(window.ids) for window in run.train_windows]
    # Python, torch and the data as they are now; on a GPU none of it counts.
    program = {} if torch.cuda.is_available() else {"program and data": int(psutil.Process().memory_info().rss)}
    lines = [f"{recipe.name}: {recipe.task.name} from {recipe.checkpoint}", *_model_lines(run)]
    lines.append(f"training   {len(lengths):>9,} windows, {sum(lengths):,} tokens, the longest {max(lengths):,}")
    if run.unlabelled:
        more = [len(window.ids) for window in run.unlabelled]
        lines.append(f"unlabelled {len(more):>9,} windows, {sum(more):,} tokens, the longest {max(more):,}")
    for split, (examples, windows) in {"validation": (run.examples, run.windows), **run.more}.items():
        lines.append(f"{split:<10} {len(windows):>9,} windows of {len(examples):,} examples")
    total, highest = 0.0, 0
    costs: dict[object, Cost] = {}
    rounds = plan_rounds(run)
    for planned in rounds:
        training = planned.training
        alike = (training.mixed_precision, training.freeze_embeddings, training.dropout > 0)
        key = (planned.windows, planned.quantized, planned.sparse, planned.live, planned.compares_hidden, alike)
        if key not in costs:
            costs[key] = measure(run, planned)
        cost = costs[key]
        memory = program | cost.memory
        seconds, needed = cost.seconds(planned), sum(memory.values())
        total, highest = total + seconds, max(highest, needed)
        seen = planned.steps * training.batch_size
        epochs = training.epochs or seen / len(run.windows_of(planned.distillation))
        lines += [
            f"{planned.name:<10} {planned.steps:>9,} steps of {training.batch_size} windows "
            f"({epochs:.3g} epochs), {planned.tokens:,} tokens with padding: {shown_duration(seconds)}",
            f"{'':20} = {planned.parts:,} x {cost.fixed:.3g} s + {planned.tokens:,} x {1000 * cost.per_token:.3g} ms",
            f"{'':20} {shown_bytes(needed)} of memory: "
            + ", ".join(f"{k} {shown_bytes(v)}" for k, v in memory.items()),
        ]
    if any(planned.distillation and not planned.live for planned in rounds):
        taught = run.windows_of(recipe.quantize.distillation)
        seconds = _teacher_seconds(_teacher(recipe), taught) * sum(len(window.ids) for window in taught)
        total += seconds
        lines.append(f"{'teacher logits, once':<20} {shown_duration(seconds)}")
    lines += [
        f"in all     {shown_duration(total)} of training on this machine with {torch.get_num_threads()} thread(s), "
        f"from {TRIALS} timed steps of 2 sizes a stage; mask updates and evaluation come on top",
        f"memory     {shown_bytes(highest)} at most; {shown_bytes(available_memory())} are available",
        f"disk       {shown_bytes(disk_needed(run))}; {shown_bytes(free_bytes(run.folder))} are free",
    ]
    return lines


def _model_lines(run: Prepared) -> list[str]:
    model, settings = _student(run.recipe), run.recipe.prune
    matrices = encoder_matrices(model)
    weights = sum(matrix.weight.numel() for matrix in matrices.values())
    how = f"pruned to {100 * settings.sparsity:g} % zeros and quantized" if settings else "quantized"
    where = f"{weights:,} of them in {len(matrices)} matrices that are {how}"
    lines = [f"model      {model.num_parameters():>9,} weights; {where}"]
    if run.locked:
        share = 100 * prune.mask_sparsity(run.locked)
        lines.append(f"locked     {share:>9.1f} % of the encoder's weights, by {run.pattern}")
    return lines


def _teacher(recipe: Recipe) -> PreTrainedModel:
    return load_model(recipe.teacher.checkpoint or recipe.checkpoint, recipe.task, trains=False)


def _student(recipe: Recipe, dropout: float = 0.0) -> PreTrainedModel:
    """The model that becomes the artifact: a copy of the teacher, perhaps of fewer layers, or a sparse checkpoint."""
    source = recipe.checkpoint if recipe.transfer else recipe.teacher.checkpoint or recipe.checkpoint
    model = load_model(source, recipe.task, dropout=dropout)
    if recipe.prune and recipe.prune.keep_layers:
        keep_layers(model, recipe.prune.keep_layers)
    return model


def measure(run: Prepared, planned: Round) -> Cost:
    """Time real steps of a round with two sizes of batch, and count the bytes that a part of its batches needs.

    A step that is timed is on a part of a batch, not on a part of a part.
    The step's time is taken to be linear in its tokens. Activations are what autograd keeps for the backward pass:
    counted for one and for two of the longest windows, linear in the windows of a part.
    """
    recipe, windows = run.recipe, run.windows_of(planned.distillation)
    dropout = planned.training.dropout
    dense = recipe.teacher.checkpoint or recipe.checkpoint
    model = _student(recipe, dropout) if planned.sparse else load_model(dense, recipe.task, dropout=dropout)
    matrices = encoder_matrices(model)
    masks = _masks(run, matrices) if planned.sparse else {}
    if planned.quantized:
        quantize_model(model)
    teacher = _teacher(recipe) if planned.distillation else None
    if teacher is not None:
        teacher.to(processes.device())  # type: ignore[arg-type]
    stage = Stage(
        planned.name,
        recipe.task.name,
        replace(planned.training, gradient_accumulation=1),
        recipe.seed,
        windows,
        matrices,
        masks,
        distillation=planned.distillation if planned.live else None,
        teacher=live_teacher(teacher, hidden=planned.compares_hidden) if teacher and planned.live else None,
    )
    loop = open_loop(model, stage, steps=1000)
    fixed, per_token = time_steps(loop, _trial_batches(windows, planned))
    longest = max(range(len(windows)), key=lambda i: len(windows[i].ids))
    with loop.accelerator.autocast():
        one, two = (kept_for_backward(model, [windows[longest]] * count) for count in (1, 2))
    activations = one + (two - one) * (planned.windows - 1)
    memory = fixed_memory(model, planned.training, teacher, masked=planned.sparse) | {"activations": activations}
    if planned.name == "prune":
        memory |= criterion_memory(recipe.prune, matrices)
    return Cost(fixed, per_token, memory)


def time_steps(loop: Loop, batches: Sequence[Sequence[int]]) -> tuple[float, float]:
    """Time real steps on a small and on a large batch; return seconds a step, and on top of them seconds a token."""
    windows = loop.stage.windows
    times = []
    for numbers in batches:
        loop.step(0, numbers)  # warms up: memory, code paths
        seconds = []
        for trial in range(TRIALS):
            began = monotonic()
            loop.step(trial, numbers)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(monotonic() - began)
        times.append((len(numbers) * max(len(windows[i].ids) for i in numbers), min(seconds)))
    (few, short), (many, long) = times
    per_token = max(0.0, long - short) / (many - few) if many > few else long / many
    return max(0.0, short - few * per_token), per_token


def _masks(run: Prepared, matrices: Mapping[str, nn.Linear]) -> prune.Masks:
    settings = run.recipe.prune
    if settings is None:
        return run.locked
    return prune.magnitude_masks(matrices, settings.sparsity, pattern=settings.pattern, scope=settings.scope)


def criterion_memory(settings: Prune | None, matrices: Mapping[str, nn.Linear]) -> dict[str, int]:
    """What a criterion or reselection keeps of every weight: a row of its block's Fisher matrix, or one number."""
    weights = FLOAT * sum(matrix.weight.numel() for matrix in matrices.values())
    if settings and settings.criterion == "obert":
        return {"Fisher matrices": settings.fisher.block * weights}
    if settings and settings.criterion == "movement":
        return {"movement scores": weights}
    return {"weights set aside": weights} if settings and settings.reselect_until else {}


def _trial_batches(windows: Sequence[Window], planned: Round) -> tuple[list[int], list[int]]:
    """A window of middle length, and as many around it as a part of a batch holds or a trial may."""
    order = sorted(range(len(windows)), key=lambda i: len(windows[i].ids))
    middle = len(order) // 2
    most = planned.windows
    if not torch.cuda.is_available():
        most = min(most, max(2, TRIAL_TOKENS // len(windows[order[middle]].ids)))
    first = max(0, middle - most // 2)
    return [order[middle]], order[first : first + most]


def kept_for_backward(model: PreTrainedModel, windows: Sequence[Window]) -> int:
    """Return the bytes that autograd keeps of a forward pass besides the model's own weights."""
    model.train()
    return kept_by(lambda: output_of(model, collate(windows, model.device)).logits, model)


def kept_by(forward: Callable[[], Tensor], model: PreTrainedModel) -> int:
    """Return the bytes that autograd keeps for the backward pass of what `forward` returns, without the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = forward()
    total = sum(kept.values())
    del result  # until here its graph keeps every storage alive, so no address comes twice
    return total


def fixed_memory(
    model: PreTrainedModel, training: Training, teacher: PreTrainedModel | None, *, masked: bool
) -> dict[str, int]:
    """Return the bytes that a training needs whatever its batches are, by what holds them."""
    groups = make_optimizer(model, training).param_groups
    trained = sum(parameter.numel() for group in groups for parameter in group["params"])
    memory = {
        "weights": FLOAT * model.num_parameters(),
        "gradients": FLOAT * trained,
        "Adam": 2 * FLOAT * trained,
    }
    if masked:
        memory["masks"] = mask_bytes(encoder_matrices(model))
    if teacher is not None:
        memory["teacher"] = FLOAT * teacher.num_parameters()
    return memory


def _teacher_seconds(model: PreTrainedModel, windows: Sequence[Window]) -> float:
    """Time the teacher's forward pass; return seconds per token."""
    order = sorted(range(len(windows)), key=lambda i: len(windows[i].ids))
    middle = windows[order[len(order) // 2]]
    few = [middle] * max(1, TRIAL_TOKENS // len(middle.ids))
    predict = torch_predictor(model)
    predict(few)
    began = monotonic()
    predict(few)
    return (monotonic() - began) / (len(few) * len(middle.ids))


def disk_needed(run: Prepared) -> int:
    """Return about how many bytes the run folder still has to grow by.

    A checkpoint a round, one of a teacher that is not trained, too, sparse ones with their masks; the state of the
    running round twice, since the new one is written beside the old one, and so are the teacher's logits; the artifact
    and its draft.
    """
    recipe = run.recipe
    model = _teacher(recipe)
    matrices = encoder_matrices(model)
    weights = FLOAT * model.num_parameters()
    sparse = len(recipe.stages()) - recipe.teacher.trains
    windows = run.windows_of(recipe.quantize.distillation)
    tokens = sum(len(window.ids) for window in windows)
    rows = len(windows) if recipe.task.name == "text-classification" else tokens
    logits = FLOAT * len(model_labels(recipe.task)) * rows
    state = state_bytes(model, matrices, recipe.prune)
    checkpoints = (sparse + 1) * weights + sparse * mask_bytes(matrices)
    return missing_bytes(run.folder, checkpoints + 2 * state + 2 * logits + weights)


def state_bytes(model: PreTrainedModel, matrices: Mapping[str, nn.Linear], settings: Prune | None) -> int:
    """Return about what `state.pt` holds: weights, two moments, masks, and what a criterion keeps from step to step."""
    measured_anew = settings is not None and settings.criterion == "obert"
    kept = {} if measured_anew else criterion_memory(settings, matrices)
    return 3 * FLOAT * model.num_parameters() + mask_bytes(matrices) + sum(kept.values())


def mask_bytes(matrices: Mapping[str, nn.Linear]) -> int:
    """Return what masks take: a byte a weight, in memory and in files."""
    return sum(matrix.weight.numel() for matrix in matrices.values())


def check_disk(run: Prepared) -> None:
    """Refuse to start what the disk cannot hold. Raises TrainingError with both sizes."""
    check_room(run.folder, disk_needed(run))


def available_memory() -> int:
    """Return the bytes of memory that are free for this process: of the GPU, else of the machine and its cgroup."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    free = int(psutil.virtual_memory().available)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and limit.read_text().strip().isdigit():
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free


def shown_duration(seconds: float) -> str:
    """Return a duration as people say it."""
    if seconds < 90:
        return f"about {seconds:.0f} s"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h"
