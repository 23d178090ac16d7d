"""`sparselane predict` and `inspect`, through the command line's own parser; what `serve` loads."""

import json
import os
import re
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli import app
from service.inspection import size
from service.keys import Keyring
from tests.service import artifacts
from tests.service.artifacts import CLS, NER, QA

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifacts.write_all(tmp_path_factory.mktemp("models"))


def run(*arguments: object, stdin: str | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    return result.exit_code, result.stdout, result.stderr


def test_predict_answers_arguments_and_lines(folder: Path) -> None:
    code, out, _ = run("predict", "sentiment", "a good film", "a bad film", "--models-dir", folder)
    assert code == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert [{entry["label"] for entry in entries} for entries in lines] == [{"negative", "positive"}] * 2
    assert run("predict", folder / "sentiment", stdin="a good film\na bad film\n") == (0, out, "")


def test_predict_takes_questions_in_pairs_or_as_json(folder: Path) -> None:
    asked = artifacts.INPUTS[QA]
    code, out, _ = run("predict", "qa", asked["question"], asked["context"], "--models-dir", folder)
    assert code == 0
    (answer,) = json.loads(out)
    assert asked["context"][answer["start"] : answer["end"]] == answer["answer"]
    assert run("predict", "qa", "--models-dir", folder, stdin=json.dumps(asked) + "\n") == (0, out, "")
    code, _, error = run("predict", "qa", "only one", "--models-dir", folder, "--threads", "1")
    assert (code, "pairs of QUESTION CONTEXT" in error) == (2, True)


def test_predict_takes_the_parameters_of_a_request(folder: Path) -> None:
    arguments = ("predict", "sentiment", "a good film", "--models-dir", folder, "--parameters")
    code, out, _ = run(*arguments, '{"top_k": 1}')
    assert (code, len(json.loads(out))) == (0, 1)
    code, _, error = run(*arguments, '{"topk": 1}')
    assert (code, "did you mean 'top_k'" in error) == (2, True)


def test_predict_says_what_is_wrong_with_an_input(folder: Path) -> None:
    code, _, error = run("predict", "qa", "--models-dir", folder, stdin='{"question": "a", "contxt": "b"}\n')
    assert (code, "did you mean 'context'" in error) == (2, True)
    code, _, error = run("predict", "qa", "--models-dir", folder, stdin="no json\n")
    assert (code, "Expecting value" in error) == (2, True)
    code, _, error = run("predict", "sentiment", " ", "--models-dir", folder)
    assert (code, "no words" in error) == (2, True)


def test_an_unknown_model_names_the_nearest(folder: Path) -> None:
    code, _, error = run("predict", "sentimen", "x", "--models-dir", folder)
    assert (code, "did you mean 'sentiment'" in error) == (2, True)


def test_a_key_is_printed_once_and_its_table_goes_into_the_keys_file(tmp_path: Path) -> None:
    code, out, error = run("key", "alice", "--role", "admin", "--tokens-per-minute", "60")
    assert code == 0
    (tmp_path / "keys.toml").write_text(out)
    secret = error.split()[-1]
    key = Keyring(tmp_path / "keys.toml").find(secret)
    assert key is not None and (key.name, key.role) == ("alice", "admin")
    assert secret not in out
    code, _, error = run("key", "a b")
    assert (code, "must be 1 to 64 letters" in error) == (2, True)


def test_inspect_shows_matrices_sizes_quality_and_provenance(folder: Path) -> None:
    code, out, _ = run("inspect", "ner", "--models-dir", folder)
    assert code == 0
    for part in (
        "1 layers, 32 wide",
        NER,
        "none on none none: dense not measured",
        "base_checkpoint",
        "random",
        "ffn out",
    ):
        assert part in out, out
    for matrix in json.loads(run("inspect", folder / "ner", "--json")[1])["matrices"]:
        assert f"{100 * matrix['sparsity']:.1f} {size(matrix['bytes']).replace(' ', '')} " in out
    assert "times smaller than dense float32" in " ".join(out.split())


def test_inspect_as_json_adds_up_to_the_files(folder: Path) -> None:
    code, out, _ = run("inspect", folder / "ner", "--json")
    assert code == 0
    found = json.loads(out)
    manifest = json.loads((folder / "ner" / "manifest.json").read_text())
    assert [f"encoder.{m['layer']}.{m['name']}" for m in found["matrices"]] == list(manifest["matrices"])
    for matrix, said in zip(found["matrices"], manifest["matrices"].values(), strict=True):
        assert matrix["survivors"] == said["survivors"]
        assert matrix["sparsity"] == pytest.approx(1 - said["survivors"] / (said["rows"] * said["columns"]))
        assert matrix["format"] in ("survivors", "masked", "blocks_1x4", "blocks_4x1", "dense")
    assert sum(matrix["bytes"] for matrix in found["matrices"]) == manifest["size"]["encoder_bytes"]
    assert found["parts"]["embeddings"] == manifest["size"]["embedding_bytes"]
    # All but the header of the tensors' file.
    header = manifest["size"]["total_bytes"] - sum(found["parts"].values())
    assert 0 < header < 10_000


def test_inspect_draws_a_picture_and_says_what_it_needs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ner.png"
    assert run("inspect", folder / "ner", "--png", path)[0] == 0
    width, height = struct.unpack(">II", path.read_bytes()[16:24])
    assert path.read_bytes().startswith(b"\x89PNG")
    assert width > 800 and height > 200
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, error = run("inspect", folder / "ner", "--png", path)
    assert (code, "pip install 'sparselane[plots]'" in error) == (2, True)


def test_inspect_says_what_is_wrong(tmp_path: Path) -> None:
    path = artifacts.write(tmp_path, CLS)
    (path / "manifest.json").write_text("{")
    code, _, error = run("inspect", path)
    assert (code, "manifest.json" in error) == (2, True)
    code, _, error = run("inspect", tmp_path / "nothing")
    assert (code, "neither an artifact's folder nor a model" in error) == (2, True)


def test_what_stops_the_start_is_said_in_a_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*arguments: object) -> str:
        command = [sys.executable, "-m", "service", "serve", "--host", "127.0.0.1", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])
        assert (done.returncode, done.stdout) == (2, "")
        return done.stderr

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert "another program has this port" in failing("--port", port, "--models-dir", folder)
    assert "no subfolder with a manifest.json" in failing("--port", 0, "--models-dir", tmp_path)
    assert "SPARSELANE_PORT is '70000'" in failing("--port", 70000)
    assert "--host" in failing("--port", 0, "--host", "no.such.host.invalid")
    (tmp_path / "settings.toml").write_text("prot = 1")
    assert "unknown setting prot" in failing("--config", tmp_path / "settings.toml")
    monkeypatch.setenv("SPARSELANE_PROT", "1")
    assert "did you mean 'SPARSELANE_PORT'" in failing()


def test_the_server_holds_no_command_line_libraries() -> None:
    code = "import sys, service.server; print([name for name in ('typer', 'rich') if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, timeout=60) == "[]\n"


def test_help_names_the_commands() -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert all(command in out for command in ("serve", "predict", "inspect"))


@pytest.mark.parametrize("options", [[], ["--log-level", "info"]], ids=["alone", "with options"])
def test_serve_alone_starts_without_the_libraries_of_command_lines(options: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "service", "serve", *options]
    variables = {"SPARSELANE_MODELS_DIR": str(tmp_path), "SPARSELANE_PORT": "0", "SPARSELANE_PROBE_PORT": "0"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | variables, timeout=60)
    assert done.returncode == 2
    assert f"sparselane: the models folder {tmp_path} has no subfolder" in done.stderr
    assert bool(re.search(r"\| +typer$", done.stderr, re.MULTILINE)) is bool(options)
