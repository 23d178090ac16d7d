"""Random damage to an artifact: refused with a named error or still valid, and never a crash."""

import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import engine
from tests.engine.damage import overwrite, seal
from tests.random_artifact import write_random_artifact

FLIPS = 10_000
DEEP_ROUNDS = 2_000
FILES = ("manifest.json", "model.safetensors", "tokenizer.json", "README.md")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts") / "tiny"
    write_random_artifact(folder, layers=1, hidden=8, heads=2, ffn=12, sparsity=0.5, positions=8, stride=2)
    return folder


def test_ten_thousand_byte_flips(original: Path, tmp_path: Path) -> None:
    """One byte of one file at a time; files are chosen evenly, so that the small ones get their share."""
    folder = shutil.copytree(original, tmp_path / "tiny")
    contents = {name: (folder / name).read_bytes() for name in FILES}
    choose, flips, refused = random.Random(0), dict.fromkeys(FILES, 0), dict.fromkeys(FILES, 0)
    for _ in range(FLIPS):
        name = choose.choice(FILES)
        flips[name] += 1
        damaged = bytearray(contents[name])
        damaged[choose.randrange(len(damaged))] ^= choose.randrange(1, 256)
        overwrite(folder / name, damaged)
        try:
            engine.load(folder, threads=1)
        except engine.ArtifactError:
            refused[name] += 1
        overwrite(folder / name, contents[name])
    assert set(FILES) == {path.name for path in folder.iterdir()}
    assert all(flips[name] > FLIPS / 5 for name in FILES)
    manifest, *others = FILES
    assert {name: refused[name] for name in others} == {name: flips[name] for name in others}, "behind a checksum"
    # In the manifest itself a flip may hit free text, about a twentieth of it, and the rest still verifies.
    assert 0 < flips[manifest] - refused[manifest] < flips[manifest] / 10


def test_damage_behind_the_checksum(original: Path, tmp_path: Path) -> None:
    """The same with checksums put right, so that every decoder is reached; in a process of its own, to see a crash."""
    folder = shutil.copytree(original, tmp_path / "tiny")
    here = Path(__file__).resolve().parents[2]
    command = [
        sys.executable,
        "-W",
        "error",
        "-c",
        f"import tests.engine.test_fuzz as t; t.damage_deeply({str(folder)!r})",
    ]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stderr}"
    refused, ran = (int(word) for word in done.stdout.split())
    assert refused + ran == DEEP_ROUNDS
    assert min(refused, ran) > DEEP_ROUNDS / 20


def damage_deeply(path: str) -> None:
    """Damage model.safetensors, seal the folder, load and run; prints how many were refused and how many ran."""
    folder, choose, refused = Path(path), random.Random(1), 0
    file = folder / "model.safetensors"
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    ids, lengths = np.arange(8, dtype=np.int32), np.array([5, 3], np.int32)
    with np.errstate(all="ignore"):
        for _ in range(DEEP_ROUNDS):
            damaged = bytearray(content)
            for _ in range(choose.choice((1, 1, 4, 30))):
                start = choose.choice((0, header, header))
                damaged[choose.randrange(start, len(damaged))] = choose.choice(
                    (0, 1, 0x7F, 0x80, 0xFF, choose.randrange(256))
                )
            if choose.random() < 0.1:
                del damaged[choose.randrange(len(damaged)) :]
            overwrite(file, damaged)
            seal(folder)
            try:
                model = engine.load(folder, threads=1, isa=choose.choice(engine.supported_isas()))
                assert model.forward(ids, lengths).shape == (8, 2)
            except engine.ArtifactError:
                refused += 1
    sys.stdout.write(f"{refused} {DEEP_ROUNDS - refused}\n")
