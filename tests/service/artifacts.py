"""A models folder of random artifacts, one per task, whose golden examples are what they really answer."""

import json
import shutil
from pathlib import Path
from typing import Any

from service.loading import load_model
from service.pipeline import TASKS, answer_now
from tests.random_artifact import write_random_artifact

QA, CLS, NER = "question-answering", "text-classification", "token-classification"
NAMES = {QA: "qa", CLS: "sentiment", NER: "ner"}
INPUTS: dict[str, Any] = {
    QA: {"question": "who was in london", "context": "john was in paris. mary was in london."},
    CLS: "a good film",
    NER: "john and mary was in london",
}


def write(folder: Path, task: str, **options: Any) -> Path:
    """Write a random artifact for `task` into a subfolder of `folder`; its golden example is its own answer."""
    options = {"name": NAMES[task], "layers": 1, "hidden": 32, "heads": 2, "ffn": 64, **options}
    path = folder / str(options["name"])
    write_random_artifact(path, task=task, **options)
    model = load_model(path, threads=1)
    item = TASKS[task].item.validate_python(INPUTS[task])
    entries, _ = answer_now(TASKS[task], model, item, TASKS[task].parameters())
    shutil.rmtree(path)
    golden = {"input": INPUTS[task], "expected": TASKS[task].golden(entries)}
    write_random_artifact(path, task=task, golden=[golden], **options)
    return path


def write_all(folder: Path) -> Path:
    for task in NAMES:
        write(folder, task)
    return folder


def edit(path: Path, change: Any) -> None:
    """Change an artifact's manifest, which is the one file without a checksum."""
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))
