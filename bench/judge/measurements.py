"""The measurements by name: each gives the rows of one CSV file about one artifact."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from safetensors import safe_open

from bench.judge.calibration import bins
from bench.judge.intervals import interval, loss
from bench.judge.latency import measure_latency
from bench.judge.outcomes import Decision, Outcomes
from bench.judge.perturbations import CHANGES, perturbed
from bench.judge.sets import MOSTLY_SEEN, drawn
from bench.judge.subject import Subject
from compression.checkpoint import load_model
from compression.evaluate import torch_predictor
from compression.examples import Example, QuestionExample
from compression.teacher import load_teacher

Rows = Iterator[dict[str, Any]]

# Each example is read once more for every change; a question costs ten times a sentence.
PERTURBED_EXAMPLES: Final = 1000
# Float models are ten to twenty times slower than the artifact.
FLOAT_EXAMPLES: Final = 1000
HARDEST: Final = 20
# Of a score in percent: one of 10,000 examples is 0.01.
DIGITS: Final = 4


def facts(subject: Subject) -> Rows:
    """What the manifest says: its own numbers for the dense and the sparse float model among it."""
    manifest, recipe = subject.manifest, subject.recipe
    quality, provenance = manifest.quality, manifest.provenance
    values = {
        "task": manifest.task.name,
        "labels": len(manifest.task.labels),
        "base": provenance["base_checkpoint"],
        "layers": manifest.architecture.layers,
        "hidden": manifest.architecture.hidden,
        "sparsity": round(manifest.sparsity["overall"], 4),
        "pattern": manifest.sparsity.get("pattern", "unknown"),
        "window": manifest.task.window,
        "stride": manifest.task.stride,
        "metric": quality["metric"],
        "dense": quality.get("dense"),
        "sparse": quality.get("sparse"),
        "train_file": recipe.data.train,
        "data": json.dumps(list(provenance["data"])),
        "seeds": " ".join(map(str, provenance["seeds"])),
        "minutes": round(sum(provenance["minutes"].values())),
        "date": provenance["date"],
    }
    yield from ({"fact": name, "value": value} for name, value in values.items())


def scores(subject: Subject) -> Rows:
    """The headline on every set, with its interval, and how much of the set training had seen."""
    for name in subject.sets:
        answered, chosen, seen = subject.answered(name), subject.set(name), subject.seen(name)
        yield {
            "set": name,
            "files": " ".join(chosen.files),
            "about": chosen.about,
            "examples": len(answered.examples),
            "of": answered.total,
            **_scored(answered.outcomes),
            "seen": "" if seen is None else round(seen, 4),
        }


def calibration(subject: Subject) -> Rows:
    """Confidence beside the share that is right, bin by bin, on every set."""
    for name in subject.sets:
        for one in bins(subject.answered(name).outcomes.decisions):
            yield {
                "set": name,
                "low": round(one.low, 4),
                "high": round(one.high, 4),
                "count": one.count,
                "confidence": round(one.confidence, 5),
                "right": round(one.right, 5),
            }


def lengths(subject: Subject) -> Rows:
    """The headline by tokens read, in steps of a factor of two, on the main set."""
    outcomes = subject.answered(subject.sets[0]).outcomes
    low, high = 0, 8
    while low < outcomes.tokens.max():
        part = outcomes.take((outcomes.tokens > low) & (outcomes.tokens <= high))
        if len(part.tokens):
            yield {"tokens_above": low, "tokens_to": high, "examples": len(part.tokens), **_scored(part)}
        low, high = high, 2 * high


def _scored(outcomes: Outcomes) -> dict[str, float]:
    low, high = interval(outcomes)
    return {"score": round(outcomes.score, DIGITS), "low": round(low, DIGITS), "high": round(high, DIGITS)}


def _lost(outcomes: Outcomes, reference: Outcomes) -> dict[str, float]:
    lost, low, high = loss(outcomes, reference)
    return {"loss": round(lost, DIGITS), "loss_low": round(low, DIGITS), "loss_high": round(high, DIGITS)}


def robustness(subject: Subject) -> Rows:
    """The headline on a part of the main set, as it is and with changed texts; what is lost of it, drawn in pairs."""
    name = subject.sets[0]
    answered = subject.answered(name)
    numbers = drawn(len(answered.examples), PERTURBED_EXAMPLES)
    examples, clean = [answered.examples[i] for i in numbers], answered.outcomes.take(numbers)
    yield {"change": "none", "examples": len(numbers), "read_differently": 0, **_scored(clean)}
    before = _ids(subject, examples)
    for change in CHANGES:
        changed = perturbed(examples, change)
        differs = sum(ids != other for ids, other in zip(before, _ids(subject, changed), strict=True))
        outcomes = subject.judge(subject.predict, changed, name) if differs else clean
        row = {"change": change, "examples": len(numbers), "read_differently": differs}
        yield row | _scored(outcomes) | _lost(outcomes, clean)


def _ids(subject: Subject, examples: Sequence[Example]) -> list[list[int]]:
    """Return the tokens of each example, one window after another."""
    result: list[list[int]] = [[] for _ in examples]
    for window in subject.encoder.windows(examples):
        result[window.example] += window.ids.tolist()
    return result


def errors(subject: Subject) -> Rows:
    """What the model was most sure of and wholly wrong about: numbers and labels, no words of the data."""
    answered = subject.answered(subject.sets[0])
    wrong = [decision for decision in answered.outcomes.decisions if decision.worth == 0]
    wrong.sort(key=lambda decision: (-decision.confidence, decision.example))
    for rank, decision in enumerate(wrong[:HARDEST], start=1):
        yield {
            "rank": rank,
            "example": example_name(answered.examples[decision.example], decision),
            "expected": decision.expected,
            "found": decision.found,
            "confidence": round(decision.confidence, 4),
        }


def example_name(example: Example, decision: Decision) -> str:
    """Name an example as its publishers do, or by its number from 1, with the words that an entity has."""
    if isinstance(example, QuestionExample):
        return example.id
    return f"{decision.example + 1}" + (f":{decision.place}" if decision.place else "")


def size(subject: Subject) -> Rows:
    """Bytes on disk by what they are for, and the same parts in dense float32, 4 bytes a number."""
    a, sizes = subject.manifest.architecture, subject.manifest.size
    embeddings = 4 * a.hidden * (a.vocabulary + a.positions + a.types + 2)
    norms = 4 * a.hidden * 4 * a.layers
    encoder = sizes["encoder_dense_fp32_bytes"]
    dense = {"embeddings": embeddings, "encoder": encoder, "norms": norms}
    dense["head"] = sizes["dense_fp32_bytes"] - sum(dense.values())
    stored = dict.fromkeys(dense, 0)
    with safe_open(subject.folder / "model.safetensors", framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118, the file is no mapping
            part = "norms" if name.startswith("encoder.") and "_norm." in name else name.partition(".")[0]
            stored[part] += file.get_tensor(name).nbytes
    yield from ({"part": name, "bytes": stored[name], "dense_bytes": dense[name]} for name in dense)
    yield {"part": "tokenizer", "bytes": (subject.folder / "tokenizer.json").stat().st_size, "dense_bytes": ""}
    yield {"part": "on disk", "bytes": sizes["total_bytes"], "dense_bytes": sizes["dense_fp32_bytes"]}
    matrices = subject.manifest.matrices.values()
    weights = 4 * sum(m.rows * m.columns for m in matrices)
    yield {"part": "surviving weights", "bytes": sum(m.survivors for m in matrices), "dense_bytes": weights}


def latency(subject: Subject) -> Rows:
    """Seconds of a call, round by round, beside the dense model in two engines."""
    return measure_latency(subject.folder, subject.manifest, subject.task)


def floats(subject: Subject, run: Path) -> Rows:
    """The run's dense teacher and its sparse model, float32 in torch, beside the artifact on the same examples.

    Sets that training had mostly seen are left out.
    """
    models = {"dense": load_teacher(str(run / "teacher"), subject.task)}
    for stage in ("pruned", "transferred"):
        if (run / stage).is_dir():
            models["sparse"] = load_model(str(run / stage), subject.task)
    for name in subject.sets:
        if (subject.seen(name) or 0.0) > MOSTLY_SEEN:
            continue
        answered = subject.answered(name)
        numbers = drawn(len(answered.examples), FLOAT_EXAMPLES)
        examples, ours = [answered.examples[i] for i in numbers], answered.outcomes.take(numbers)
        found = {kind: subject.judge(torch_predictor(model), examples, name) for kind, model in models.items()}
        for kind, outcomes in [*found.items(), ("artifact", ours)]:
            row = {"set": name, "model": kind, "examples": len(numbers)}
            yield row | _scored(outcomes) | _lost(outcomes, found["dense"])


# In this order: the first rows come after seconds.
MEASUREMENTS: Final[Mapping[str, Callable[[Subject], Rows]]] = {
    "facts": facts,
    "size": size,
    "scores": scores,
    "calibration": calibration,
    "lengths": lengths,
    "robustness": robustness,
    "errors": errors,
    "latency": latency,
}
