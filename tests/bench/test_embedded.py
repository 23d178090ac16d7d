"""`make models`: recipes become the artifacts of a folder, once, and again only where something changed."""

from pathlib import Path

import pytest

import engine
from bench import embedded
from service.loading import load_models
from tests.compression import tiny

TASK = "text-classification"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "recipes").mkdir()
    text = tiny.recipe(TASK, tiny.checkpoint(tmp_path / "base"), tmp_path)
    (tmp_path / "recipes" / "tiny.toml").write_text(text)
    return tmp_path


def rebuild(place: Path, *names: str) -> None:
    folders = {"--data": place, "--runs": place / "runs", "--recipes": place / "recipes", "--models": place / "models"}
    given = [word for name, path in folders.items() for word in (name, str(path))]
    embedded.main([*names, *given, "--threads", "1", "--no-judge"])


def test_a_recipe_becomes_an_embedded_artifact_once(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rebuild(place, "tiny")
    assert "replaced by" in capfd.readouterr().err
    assert load_models(place / "models", threads=1).failures == {}
    model = place / "models" / "tiny" / "model.safetensors"
    before = model.stat().st_mtime_ns, model.stat().st_ino
    rebuild(place, "tiny")
    assert (model.stat().st_mtime_ns, model.stat().st_ino) == before
    assert "replaced by" not in capfd.readouterr().err
    assert sorted(path.name for path in (place / "models").iterdir()) == ["tiny"], "nothing is left over"


def test_other_weights_take_the_place_of_those_that_are_there(place: Path) -> None:
    rebuild(place, "tiny")
    other = place / "other"
    (place / "runs" / "tiny" / "artifact").rename(other)
    manifest = (other / "manifest.json").read_text()
    (other / "manifest.json").write_text(manifest.replace("epochs = 3", "epochs = 4", 1))
    assert embedded.embed(other, place / "models" / "tiny")
    assert "epochs = 4" in engine.read_manifest(place / "models" / "tiny").provenance["recipe"]


def test_asking_for_recorded_steps_does_no_harm_without_a_gpu(place: Path) -> None:
    rebuild(place, "tiny", "--record-steps")
    assert load_models(place / "models", threads=1).failures == {}


def test_what_is_missing_is_said_before_the_first_hour(place: Path) -> None:
    text = (place / "recipes" / "tiny.toml").read_text()
    (place / "recipes" / "second.toml").write_text(text.replace(f"{TASK}.data", "nowhere.tsv"))
    with pytest.raises(SystemExit, match=r"^error: .*nowhere\.tsv"):
        rebuild(place, "tiny", "second")
    assert not (place / "runs").exists()
    with pytest.raises(SystemExit, match=r"^error: .*third\.toml"):
        rebuild(place, "tiny", "third")


def test_a_run_that_fails_ends_with_its_status(place: Path) -> None:
    path = place / "recipes" / "tiny.toml"
    path.write_text(path.read_text().replace(str(place / "base"), str(place / "gone")))
    with pytest.raises(SystemExit) as error:
        rebuild(place, "tiny")
    assert error.value.code == 2
    assert not (place / "models").exists()


def test_the_recipes_of_all_embedded_models_are_there() -> None:
    folders = {path.parent.name for path in embedded.models.EMBEDDED.glob("*/manifest.json")}
    assert folders <= set(embedded.NAMES)
    for name in embedded.NAMES:
        assert (embedded.RECIPES / f"{name}.toml").is_file()
