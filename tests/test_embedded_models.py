"""The models that come with the service hold what the project promises of them."""

from pathlib import Path

import pytest

import engine
from compression.read_recipe import parse_recipe
from service.loading import load_models

MODELS = Path(__file__).parents[1] / "service" / "models"
# Just below the lower ends of the published intervals: a model that is worse by more than chance is no new version.
FLOORS = {
    "qa": ("f1", 77.0),
    "sentiment": ("accuracy", 0.88),
    "ner": ("entity_f1", 0.87),
    "intent": ("accuracy", 0.91),
}
# Most bytes of a model's folder.
LARGEST = 8_000_000


@pytest.fixture(params=list(FLOORS))
def manifest(request: pytest.FixtureRequest) -> engine.Manifest:
    return engine.read_manifest(MODELS / request.param)


def test_all_models_give_their_golden_answers() -> None:
    models = load_models(MODELS, threads=1)
    assert models.failures == {}
    assert sorted(models.serving) == sorted(FLOORS)


def test_quality_is_above_the_floor_and_stands_beside_the_dense_teacher(manifest: engine.Manifest) -> None:
    metric, floor = FLOORS[manifest.name]
    quality = manifest.raw["quality"]
    assert quality["metric"] == metric
    lowest, _ = quality["interval"]
    assert floor < lowest < quality["quantized"]
    assert quality["dense"] > floor
    assert manifest.golden, "nothing proves the model at load"


def test_models_are_sparse_and_small(manifest: engine.Manifest) -> None:
    assert manifest.raw["sparsity"]["overall"] >= 0.9
    assert sum(file.stat().st_size for file in (MODELS / manifest.name).iterdir()) <= LARGEST


def test_the_recipe_in_the_manifest_is_the_shipped_one(manifest: engine.Manifest) -> None:
    text = manifest.raw["provenance"]["recipe"]
    assert parse_recipe(text).name == manifest.name
    shipped = Path(__file__).parents[1] / "compression" / "recipes" / f"{manifest.name}.toml"
    assert text == shipped.read_text(encoding="utf-8")


def test_labels(manifest: engine.Manifest) -> None:
    labels = {"qa": ["start", "end"], "sentiment": ["negative", "positive"]}
    labels["intent"] = sorted(manifest.task.labels) if len(set(manifest.task.labels)) == 77 else []
    labels["ner"] = ["O", *(f"{prefix}-{group}" for group in ("PER", "ORG", "LOC", "MISC") for prefix in "BI")]
    assert list(manifest.task.labels) == labels[manifest.name]
