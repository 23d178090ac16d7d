"""The README.md of an artifact, written from its manifest alone, and that of a sparse language model."""

from collections.abc import Mapping, Sequence
from typing import Any

from compression.recipe import LanguageRecipe, Source

_METRIC_NAMES = {
    "f1": "F1",
    "entity_f1": "entity F1",
    "exact_match": "exact match",
    "matthews": "Matthews correlation",
    "micro_f1": "micro F1",
    "macro_f1": "macro F1",
    "subset_accuracy": "subset accuracy",
    "best_f1": "F1 at the best no-answer threshold",
}


def model_card(manifest: Mapping[str, Any]) -> str:
    """Return the model card of a manifest as Markdown."""
    architecture, task, size = manifest["architecture"], manifest["task"], manifest["size"]
    lines = [
        f"# {manifest['name']}",
        "",
        f"A sparse, 8-bit {architecture['family']} encoder for {task['name']}: "
        f"{architecture['layers']} layers, "
        f"{architecture['hidden']} wide; "
        f"{100 * manifest['sparsity']['overall']:.1f} % of its encoder weights are zero.",
        "Made and served by sparselane.",
        "",
        *_quality(manifest["quality"]),
        "## Size",
        "",
        "| | bytes | times smaller than dense float32 |",
        "|---|---|---|",
        f"| encoder | {size['encoder_bytes']:,} | {size['ratio_encoder']:.1f} |",
        f"| encoder, surviving values alone | | {size['ratio_encoder_values']:.1f} |",
        f"| whole model | {size['total_bytes']:,} | {size['ratio_total']:.1f} |",
        "",
        *_temperature(manifest),
        *_provenance(manifest["provenance"], task),
    ]
    return "\n".join(lines)


def language_card(
    recipe: LanguageRecipe, recipe_text: str, sparsity: float, dense: Mapping[str, float], sparse: Mapping[str, float]
) -> str:
    """Return the model card of a sparse language model as Markdown, with its scores on held-out text."""
    return "\n".join(
        [
            f"# {recipe.name}",
            "",
            f"A sparse language model: {100 * sparsity:.1f} % of its encoder weights are zero.",
            "`masks.safetensors` says which were pruned.",
            "Fine-tune it with its pattern locked. Made by sparselane.",
            "",
            "| on held-out text | dense teacher | this model |",
            "|---|---|---|",
            *(f"| {key.replace('_', ' ')} | {dense[key]:.4g} | {value:.4g} |" for key, value in sparse.items()),
            "",
            f"Base checkpoint: {recipe.checkpoint}.",
            "",
            *_sources(recipe.text.sources),
            "## Recipe",
            "",
            "```toml",
            recipe_text.rstrip(),
            "```",
            "",
        ]
    )


def _sources(sources: Sequence[Source]) -> list[str]:
    if not sources:
        return []
    return ["Trained on:", "", *(f"* {data.name}: {data.licence}. {data.source}" for data in sources), ""]


def _quality(quality: Mapping[str, Any]) -> list[str]:
    if quality["dataset"] is None:
        return ["Quality: not measured.", ""]
    # Artifacts from before `scores` have the headline alone.
    scores = quality.get("scores") or {
        key: {quality["metric"]: quality[key]} for key in ("dense", "sparse", "quantized")
    }
    names = list(scores["quantized"])
    titles = [_title(name) for name in names]
    rows = [
        ("dense teacher, float32", "dense"),
        ("sparse, float32", "sparse"),
        ("sparse, int8 (this model)", "quantized"),
    ]
    return [
        "## Quality",
        "",
        f"{_title(quality['metric'])} on {quality['dataset']} {quality['split']}, {quality['examples']} examples:",
        "",
        "| model | " + " | ".join(titles) + " |",
        "|---" * (1 + len(names)) + "|",
        *(
            f"| {model} | " + " | ".join(_cell(scores[key].get(name)) for name in names) + " |"
            for model, key in rows
            if quality[key] is not None
        ),
        "",
        *_judged(quality),
    ]


def _cell(score: float | None) -> str:
    return "not measured" if score is None else f"{score:.4g}"


def _temperature(manifest: Mapping[str, Any]) -> list[str]:
    """Say where the calibration error flatters, for who reads it in the table above."""
    quality, temperature = manifest["quality"], manifest["provenance"].get("temperature", 1.0)
    if temperature == 1.0 or quality["dataset"] is None:
        return []
    fitted = f"{quality['dataset']} {quality['split']}"
    return [f"Scores are divided by a temperature of {temperature:g} before the softmax, fitted on {fitted}.", ""]


def _judged(quality: Mapping[str, Any]) -> list[str]:
    """What `python -m bench.models` measured besides, where it did."""
    if "interval" not in quality:
        return []
    titles = f"| set | examples | {_title(quality['metric'])} | 95 % interval | calibration error |"
    headline = {**quality, "set": f"{quality['dataset']} {quality['split']}"}
    rows = [
        f"| {one['set']}{_seen(one.get('seen'))} | {one['examples']} | {one['quantized']:.4g} "
        f"| {one['interval'][0]:.4g} to {one['interval'][1]:.4g} | {one['calibration_error']:.4g} |"
        for one in (headline, *quality["others"])
    ]
    return ["This model on other sets too:", "", titles, "|---|---|---|---|---|", *rows, ""]


def _seen(share: float | None) -> str:
    return " (most of it was in training: no test)" if share and share > 0.5 else ""


def _title(score: str) -> str:
    """Name a score for people; "mismatched/accuracy" is the accuracy on another validation set."""
    split, _, metric = score.rpartition("/")
    return f"{split} {_METRIC_NAMES.get(metric, metric)}".strip()


def _provenance(provenance: Mapping[str, Any], task: Mapping[str, Any]) -> list[str]:
    lines = [
        "## Origin",
        "",
        f"Base checkpoint: {provenance['base_checkpoint'] or 'not recorded'}. Date: {provenance['date']}.",
        "",
    ]
    if task["labels"]:
        lines += ["Labels: " + ", ".join(task["labels"]) + ".", ""]
    if provenance["data"]:
        lines += _sources([Source(**data) for data in provenance["data"]])
    if provenance["minutes"]:
        minutes = ", ".join(f"{stage} {spent:.0f}" for stage, spent in provenance["minutes"].items())
        lines += [f"Minutes of training: {minutes}.", ""]
    if provenance["recipe"]:
        lines += ["## Recipe", "", "```toml", provenance["recipe"].rstrip(), "```", ""]
    return lines
