"""Runs scripts with transformers 4.57 and huggingface_hub 0.36, which `make setup` puts into a folder of the venv.

That folder goes in front of the environment's own packages, torch and numpy among them, in a process of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(sys.prefix) / "transformers4"
needed = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no transformers 4.57 in {FOLDER}: run `make setup`")


def run(script: Path, *arguments: str, document: Any = None, old: bool = True) -> Any:
    """Run `script` with `document` as JSON on its standard input; return the JSON that it prints.

    `old` false: with the environment's own packages alone.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    if old:
        environment["PYTHONPATH"] = str(FOLDER)
    command = [sys.executable, str(script), *arguments]
    given = json.dumps(document)
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
