"""The real command killed, stopped and starved: what it says, and that it ends in the same bytes."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.compression import tiny
from tests.compression.zygote import Zygote

STAGES = ("teacher", "pruned", "quantized-1", "quantized")


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with Zygote(tmp_path_factory.mktemp("zygote")) as made:
        yield made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with its data and checkpoint."""
    folder = tmp_path_factory.mktemp("data")
    base = tiny.checkpoint(folder / "base")
    (folder / "tiny.toml").write_text(tiny.recipe("text-classification", base, folder, epochs=1.5))
    return folder


@pytest.fixture(scope="module")
def whole(zygote: Zygote, data: Path) -> Path:
    """The folder of a run that nothing disturbed; its state was never saved."""
    status, output = zygote.run(*command(data, data / "whole"), save=1e9)
    assert status == 0, output
    return data / "whole"


def command(data: Path, folder: Path) -> list[object]:
    return ["run", data / "tiny.toml", "--data", data, "--run-folder", folder, "--threads", 1]


def results(folder: Path) -> dict[str, Any]:
    """Every byte of a run that must not differ, and what the manifest says but for the time that it took.

    These fields may differ: `provenance.minutes` and `provenance.date`, the lines of the README that show them, and
    with them the README's entry in `files`.
    """
    artifact = folder / "artifact"
    manifest = json.loads((artifact / "manifest.json").read_text())
    del manifest["provenance"]["minutes"], manifest["provenance"]["date"], manifest["files"]["README.md"]
    lines = (artifact / "README.md").read_text().splitlines()
    card = [line for line in lines if not line.startswith("Minutes of training") and "Date: " not in line]
    files = [path for name in (*STAGES, "artifact") for path in (folder / name).iterdir()]
    whole_files = [path for path in files if path.name not in ("manifest.json", "README.md")]
    assert len(whole_files) >= 14
    return {str(path.relative_to(folder)): path.read_bytes() for path in whole_files} | {"m": manifest, "card": card}


def steps(folder: Path) -> list[tuple[str, int]]:
    """(stage, step) of every line of metrics.jsonl that has them."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["stage"], line["step"]) for line in lines if "step" in line]


def test_the_same_seed_gives_the_same_bytes(zygote: Zygote, data: Path, whole: Path) -> None:
    status, output = zygote.run(*command(data, data / "again"), save=1e9)
    assert status == 0, output
    assert results(data / "again") == results(whole)


def test_killed_at_any_moment_it_ends_in_the_same_bytes(zygote: Zygote, data: Path, whole: Path) -> None:
    folder = data / "killed"
    seen = set()

    def run(at: int, path: str) -> int:
        status, output = zygote.run(*command(data, folder), number=signal.SIGKILL, at=at, path=path)
        assert status in (0, -signal.SIGKILL), output
        seen.update(path.name for path in folder.iterdir())
        return status

    # Strides that rise: over the kills every kind of change is hit, and each run gets farther than the one before.
    for kill in range(4):
        assert run(at=3 + 5 * kill, path=f"{folder}/") != 0
    # Then the moments that matter most: while a stage, a picture, the artifact is written, and just before a rename.
    for path, at in (
        ("teacher.tmp", 2),
        ("pruned.tmp", 2),
        ("plots/", 2),
        ("quantized-1.tmp", 1),
        (".artifact.draft", 2),
        (".artifact-", 4),
    ):
        assert run(at, f"{folder}/{path}") != 0
    assert {"state.pt", "state.pt.tmp", "pruned.tmp", "artifact.draft"} <= seen, "it was killed while writing, too"
    assert run(at=10**9, path=f"{folder}/") == 0
    assert results(folder) == results(whole)
    assert sorted(set(steps(folder))) == sorted(steps(folder)), "no step is logged twice"
    left = {path.name for path in folder.iterdir()}
    assert left == {path.name for path in whole.iterdir()}, "nothing half-written is left"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_asked_to_stop_it_saves_and_says_how_to_go_on(
    zygote: Zygote, data: Path, whole: Path, number: signal.Signals
) -> None:
    folder = data / f"asked-{number}"
    # The states are never saved by the clock: the one that is there was saved because of the signal.
    status, output = zygote.run(*command(data, folder), number=number, at=4, path=f"{folder}/metrics", save=1e9)
    assert status == 128 + number, output
    assert (
        "error: teacher: stopped after " in output and f"{folder}/state.pt is kept: the same command goes on" in output
    )
    status, output = zygote.run(*command(data, folder), save=1e9)
    assert status == 0, output
    assert results(folder) == results(whole)


@pytest.mark.parametrize(("size", "written"), [(20_000, "teacher.tmp"), (130_000, "state.pt.tmp")])
def test_a_full_disk_keeps_the_last_checkpoint(
    zygote: Zygote, data: Path, whole: Path, size: int, written: str
) -> None:
    folder = data / f"full-{size}"
    save = 0.0 if "state" in written else 1e9
    status, output = zygote.run(*command(data, folder), file_bytes=size, save=save)
    assert status == 2, output
    assert f"error: {folder}/{written} cannot be written" in output and "the last checkpoint is intact" in output
    assert not (folder / written).exists()
    status, output = zygote.run(*command(data, folder), save=1e9)
    assert status == 0, output
    assert results(folder) == results(whole)


def test_a_language_model_killed_at_any_moment_ends_in_the_same_bytes(zygote: Zygote, tmp_path: Path) -> None:
    base = tiny.checkpoint(tmp_path / "base")
    (tmp_path / "tiny.toml").write_text(tiny.language_recipe(base, tmp_path, steps=12))
    status, output = zygote.run(*command(tmp_path, tmp_path / "whole"), save=1e9)
    assert status == 0, output
    folder, seen = tmp_path / "killed", set()
    for at, path in ((3, "text."), (3, ""), (9, ""), (2, "teacher.tmp"), (14, ""), (2, "pruned.tmp"), (10**9, "")):
        status, output = zygote.run(*command(tmp_path, folder), number=signal.SIGKILL, at=at, path=f"{folder}/{path}")
        assert status == (0 if at == 10**9 else -signal.SIGKILL), output
        seen.update(path.suffix for path in folder.iterdir() if path.name.startswith("text."))
    assert ".tmp" in seen, "it was killed while tokenizing, too"
    left = {path.name for path in folder.iterdir()}
    assert left == {path.name for path in (tmp_path / "whole").iterdir()}, "nothing half-written is left"
    for file in ("model.safetensors", "masks.safetensors", "tokenizer.json"):
        assert (folder / "pruned" / file).read_bytes() == (tmp_path / "whole" / "pruned" / file).read_bytes()


def test_a_full_disk_while_tokenizing_says_so_and_leaves_nothing(zygote: Zygote, tmp_path: Path) -> None:
    base = tiny.checkpoint(tmp_path / "base")
    (tmp_path / "tiny.toml").write_text(tiny.language_recipe(base, tmp_path))
    tiny.write_text(tmp_path / "text.txt", documents=600)
    status, output = zygote.run(*command(tmp_path, tmp_path / "run"), file_bytes=2_000)
    assert status == 2, output
    assert "text." in output and "cannot be written" in output and "Traceback" not in output
    assert not list((tmp_path / "run").glob("text*"))
