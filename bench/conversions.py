"""One random checkpoint, converted to what every engine loads, each form made once and kept in a cache folder."""

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.crew import ROOT

# No conversion of BERT-Large took a third of it; what hangs must not stop the run.
CONVERSION_SECONDS = 1200.0


class ConversionError(Exception):
    """A form could not be made; the message is the reason."""


@dataclass(frozen=True)
class Form:
    """A converted model: its place in the model's folder, who makes it from which other form."""

    path: str
    environment: str
    source: str | None
    command: Callable[[str, float, Path, Path], list[str]]


def _peer(step: str) -> Callable[[str, float, Path, Path], list[str]]:
    def command(_model: str, _sparsity: float, source: Path, target: Path) -> list[str]:
        return ["-m", "bench.peer_conversions", step, str(source), str(target)]

    return command


FORMS: Mapping[str, Form] = {
    "checkpoint": Form(
        "checkpoint",
        "main",
        None,
        lambda model, sparsity, _, out: ["-m", "bench.shapes", model, str(sparsity), str(out)],
    ),
    "artifact": Form(
        "artifact",
        "main",
        "checkpoint",
        lambda model, _, source, out: [
            *("-m", "compression", "export", str(source), "--out", str(out)),
            *("--task", "question-answering", "--name", model),
        ],
    ),
    "onnx": Form("model.onnx", "peers", "checkpoint", _peer("onnx")),
    "onnx-int8": Form("int8.onnx", "peers", "onnx", _peer("onnx-int8")),
    "openvino-int8": Form("openvino-int8", "peers", "onnx", _peer("openvino-int8")),
    "ctranslate2": Form("ctranslate2", "peers", "checkpoint", _peer("ctranslate2")),
    "deepsparse-int8": Form("deepsparse-int8.onnx", "peers", "onnx", _peer("deepsparse-int8")),
}


class Conversions:
    """Makes forms on demand and remembers failures, so that each is tried and reported once."""

    def __init__(self, cache: Path, pythons: Mapping[str, Path], note: Callable[[str], None]) -> None:
        """`note` is told what is being made: it may take a minute."""
        self._cache = cache
        self._pythons = pythons
        self._note = note
        self._failed: dict[Path, str] = {}

    def path(self, model: str, sparsity: float, form: str) -> Path:
        """Return where a form lies, after making it and what it is made from. Raises ConversionError."""
        made = FORMS[form]
        folder = self._cache / f"{model}-{100 * sparsity:g}"
        target = folder / made.path
        if target in self._failed:
            raise ConversionError(self._failed[target])
        if target.exists():
            return target
        source = self.path(model, sparsity, made.source) if made.source else folder
        folder.mkdir(parents=True, exist_ok=True)
        # Under another name until it is complete; the suffix stays, because converters look at it.
        unfinished = folder / f"unfinished-{made.path}"
        try:
            if made.environment not in self._pythons:
                raise ConversionError(f"environment .venv-bench/{made.environment} is not installed")
            self._note(f"{model} {100 * sparsity:g} %: making {form}")
            _run([str(self._pythons[made.environment]), *made.command(model, sparsity, source, unfinished)])
        except ConversionError as error:
            self._failed[target] = f"{form} could not be made: {error}"
            _remove(unfinished)
            raise ConversionError(self._failed[target]) from None
        unfinished.rename(target)
        return target


def _run(command: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=CONVERSION_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ConversionError(f"took longer than {CONVERSION_SECONDS:.0f} s") from None
    if done.returncode:
        lines = done.stdout.strip().splitlines() or ["no message"]
        raise ConversionError(lines[-1][:300])


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
