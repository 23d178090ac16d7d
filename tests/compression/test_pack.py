"""The writer: quantization by its definition, shortest Rice code, and folders that are whole or not there."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

import engine
from compression import pack
from engine import _engine
from tests.random_artifact import write_random_artifact

SMALL = {"layers": 1, "hidden": 8, "heads": 2, "ffn": 12, "sparsity": 0.5, "positions": 16}


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([64, 127]), st.sampled_from([1e-30, 1e-3, 1.0, 1e20]))
def test_quantize_rows(seed: int, limit: int, size: float) -> None:
    weight = (np.random.default_rng(seed).standard_normal((7, 30)) * size).astype(np.float32)
    weight[2] = 0
    weight[:, 5] = 0
    levels, scale = pack.quantize_rows(weight, limit)
    assert (levels.dtype, scale.dtype) == (np.int8, np.float32)
    assert scale[2] == 1
    others = [0, 1, 3, 4, 5, 6]
    assert (np.abs(levels[others]).max(axis=1) == limit).all()
    assert not levels[:, 5].any()  # a pruned zero stays exactly zero
    error = np.abs(levels * scale.astype(float)[:, None] - weight)
    assert (error <= scale[:, None] * 0.5 * (1 + 1e-5)).all()


def test_quantize_rounds_halves_to_even() -> None:
    levels, scale = pack.quantize_rows(np.array([[64, 0.5, 1.5, -2.5]], np.float32))
    assert (levels.tolist(), scale.tolist()) == ([[64, 0, 2, -2]], [1])
    assert pack.quantize_embedding(np.array([[127, -126.5]], np.float32))[0].tolist() == [[127, -126]]


@pytest.mark.parametrize("weight", [np.zeros((2, 2)), np.zeros(2, np.float32), np.full((1, 1), np.nan, np.float32)])
def test_quantize_refuses(weight: np.ndarray) -> None:
    with pytest.raises(ValueError, match="the weight"):
        pack.quantize_rows(weight)


def test_a_rice_code_by_hand() -> None:
    weight = np.zeros((2, 8), np.int8)
    weight[0, 1], weight[0, 4], weight[1, 0] = 5, -6, 7
    positions, survivors, values, rice = pack.rice_encode(weight)
    # Gaps 1, 2, 0. With k = 0: 01 001 1, six bits, lowest first; k = 1 would take seven.
    assert (rice, positions.tolist()) == (0, [0b110010])
    assert (survivors.tolist(), values.tolist()) == ([2, 1], [5, -6, 7])


def test_positions_take_what_the_format_promises() -> None:
    """About 4.8 bits for each survivor at 90 % sparsity, where the entropy is 4.69."""
    weight = (np.random.default_rng(0).random((1000, 768)) < 0.1).astype(np.int8)
    positions, _, values, _ = pack.rice_encode(weight)
    assert 4.69 < 8 * len(positions) / len(values) < 4.85


def test_sizes_and_sparsity_are_those_of_the_files(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "small"
    manifest = write_random_artifact(folder, **SMALL)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "manifest.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert manifest == engine.read_manifest(folder)
    weights, survivors = 4 * 64 + 2 * 96, sum(m.survivors for m in manifest.matrices.values())
    assert manifest.sparsity["overall"] == pytest.approx(1 - survivors / weights)
    size = manifest.size
    assert size["total_bytes"] == sum(
        (folder / name).stat().st_size for name in ("model.safetensors", "tokenizer.json")
    )
    vocabulary = manifest.architecture.vocabulary
    assert size["embedding_bytes"] == (vocabulary + 16 + 2) * (8 + 4) + 2 * 8 * 4
    rows = 5 * 8 + 12
    assert size["encoder_dense_fp32_bytes"] == 4 * (weights + rows)
    norms_and_head = 3 * 2 * 8 + 2 * 8 + 2
    assert size["dense_fp32_bytes"] == 4 * (weights + rows + (vocabulary + 18) * 8 + norms_and_head)
    assert size["ratio_encoder"] == pytest.approx(size["encoder_dense_fp32_bytes"] / size["encoder_bytes"], abs=0.01)
    assert size["ratio_encoder_values"] == pytest.approx(4 * weights / survivors, abs=0.01)


def arguments(folder: Path, into: Path) -> dict[str, object]:
    """Give write_artifact's arguments for a copy of an artifact, its matrices as int8, scale and bias."""
    manifest, tensors = json.loads((folder / "manifest.json").read_text()), load_file(folder / "model.safetensors")
    matrices = {}
    for name, entry in manifest["matrices"].items():
        parts = ("positions", "row_survivors", "value_lengths", "values", "scale", "bias")
        *coded, scale, bias = (tensors.pop(f"{name}.{part}") for part in parts)
        matrices[name] = _engine.decode(entry["columns"], entry["rice"], *coded), scale, bias
    for computed in ("matrices", "sparsity", "size", "files"):
        del manifest[computed]
    texts = {
        "tokenizer_json": (folder / "tokenizer.json").read_text(),
        "model_card": (folder / "README.md").read_text(),
    }
    return {"folder": into, "manifest": manifest, "matrices": matrices, "tensors": tensors, **texts}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts") / "small"
    write_random_artifact(folder, **SMALL)
    return folder


def test_a_matrix_given_as_int8_is_kept_as_it_is(original: Path, tmp_path: Path) -> None:
    pack.write_artifact(**arguments(original, tmp_path / "copy"))  # type: ignore[arg-type]
    for name in ("manifest.json", "model.safetensors", "tokenizer.json", "README.md"):
        assert (tmp_path / "copy" / name).read_bytes() == (original / name).read_bytes()


def test_an_artifact_replaces_an_older_one_but_nothing_else(original: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="exists and is not an artifact"):
        pack.write_artifact(**arguments(original, target))  # type: ignore[arg-type]
    assert (target / "thesis.tex").exists()
    (target / "thesis.tex").unlink()
    target.rmdir()
    for _ in range(2):
        pack.write_artifact(**arguments(original, target))  # type: ignore[arg-type]
        engine.load(target)
        assert list(tmp_path.iterdir()) == [target]
    assert target.stat().st_mode & 0o777 == 0o755


def test_nothing_is_left_of_a_failure(original: Path, tmp_path: Path) -> None:
    wrong = arguments(original, tmp_path / "target")
    wrong["tensors"] = {**wrong["tensors"], "stowaway": np.zeros(3, np.float32)}  # type: ignore[dict-item]
    with pytest.raises(engine.ArtifactError, match="stowaway"):
        pack.write_artifact(**wrong)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_matrix_that_does_not_fit(original: Path, tmp_path: Path) -> None:
    wrong = arguments(original, tmp_path / "target")
    weight, scale, bias = wrong["matrices"]["encoder.0.key"]  # type: ignore[index]
    wrong["matrices"]["encoder.0.key"] = weight, scale[1:], bias  # type: ignore[index]
    with pytest.raises(ValueError, match=r"encoder.0.key: .* scale \[7\]"):
        pack.write_artifact(**wrong)  # type: ignore[arg-type]


def test_the_writer_needs_no_torch() -> None:
    code = "import sys, compression.pack; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_new_words_on_quality_leave_the_numbers_as_they_are(original: Path, tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(original, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    was = engine.read_manifest(folder)
    quality = {**was.quality, "quantized": 0.75}
    found = pack.write_quality(folder, quality, lambda manifest: f"# judged {manifest['quality']['quantized']}\n")
    assert (folder / "README.md").read_text() == "# judged 0.75\n"
    assert engine.load(folder, threads=1).manifest.quality == quality == found.quality
    for name in ("model.safetensors", "tokenizer.json"):
        assert (folder / name).read_bytes() == before[name]
    same = was.raw.keys() - {"quality", "files"}
    assert {name: found.raw[name] for name in same} == {name: was.raw[name] for name in same}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact"], "nothing is left beside it"
    (folder / "model.safetensors").write_bytes(before["model.safetensors"][:-1])
    with pytest.raises(engine.ArtifactError):
        pack.write_quality(folder, quality, "# card")
    assert (folder / "README.md").read_text() == "# judged 0.75\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact"]
