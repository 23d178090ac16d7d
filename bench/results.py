"""The README's table of embedded models, generated from their manifests: `python -m bench.results` rewrites it."""

from pathlib import Path

import engine

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- results: python -m bench.results -->", "<!-- end of results -->"
# A manifest's metric as people name it, and what makes it percent.
METRICS = {"f1": ("F1", 1), "accuracy": ("accuracy", 100), "entity_f1": ("entity F1", 100)}


def results_table(models: Path) -> str:
    """Return the Markdown table of all artifacts in a folder, by name; scores in percent."""
    lines = [
        "| model | judged on | dense | sparse | sparse int8 (artifact) | zeros | encoder | whole model | training |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for folder in sorted(path.parent for path in models.glob("*/manifest.json")):
        manifest = engine.read_manifest(folder).raw
        quality, size = manifest["quality"], manifest["size"]
        name, factor = METRICS[quality["metric"]]
        measured = [quality[key] for key in ("dense", "sparse", "quantized")]
        scores = " | ".join("not measured" if score is None else f"{factor * score:.1f}" for score in measured)
        if "interval" in quality:
            low, high = quality["interval"]
            scores += f" ({factor * low:.1f} to {factor * high:.1f})"
        minutes = sum(manifest["provenance"]["minutes"].values())
        lines.append(
            f"| `{manifest['name']}` | {quality['dataset']} {quality['split']} ({quality['examples']:,}), {name} "
            f"| {scores} | {100 * manifest['sparsity']['overall']:.1f} % "
            f"| {size['encoder_bytes'] / 1e6:.1f} MB, {size['ratio_encoder']:.0f}x smaller "
            f"| {size['total_bytes'] / 1e6:.1f} MB, {size['ratio_total']:.1f}x smaller | {minutes:.0f} min |"
        )
    return "\n".join(lines)


def with_results(text: str, table: str, begin: str = BEGIN, end: str = END) -> str:
    """Put a table between its markers, the README's by default. Raises ValueError where the text has no markers."""
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"the text holds no {begin} ... {end}")
    return f"{before}{begin}\n{table}\n{end}{after}"


def main() -> None:
    """Rewrite the table in README.md."""
    path = ROOT / "README.md"
    text = with_results(path.read_text(encoding="utf-8"), results_table(ROOT / "service" / "models"))
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
