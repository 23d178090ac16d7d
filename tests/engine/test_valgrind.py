"""The engine under valgrind: no read or write beside its memory, nothing that depends on what was never written.

valgrind knows no AVX-512, so these are the kernels for AVX2 and the reference; the others are under sanitizers in
test_cross.py. By hand: `.venv/bin/python -m pytest tests/engine/test_valgrind.py`, about a minute.
"""

import os
import platform
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from engine import supported_isas
from tests.engine.test_cross import COMPILER, PARTS, SOURCES, X86_FLAGS, check, compile_with, link, run
from tests.random_artifact import write_random_artifact

pytestmark = [
    pytest.mark.skipif(shutil.which("valgrind") is None, reason="there is no valgrind on PATH (Debian: valgrind)"),
    pytest.mark.skipif(platform.machine() != "x86_64" or "avx2" not in supported_isas(), reason="for AVX2"),
]

FORWARD = """
import sys, numpy as np, engine
engine.threads_from_quota = lambda: 2
rng = np.random.default_rng(0)
for path in sys.argv[1:]:
    for isa in ("avx2", "reference"):
        for threads in (1, 2):
            model = engine.load(path, threads=threads, isa=isa)
            for lengths in ([1], [20], [9, 33], [70, 5]):
                ids = rng.integers(0, model.manifest.architecture.vocabulary, sum(lengths)).astype(np.int32)
                logits = model.forward(ids, np.array(lengths, np.int32))
                assert np.isfinite(logits).all()  # reads every number that was written
"""


def test_kernels_are_clean(tmp_path: Path) -> None:
    objects = [compile_with([*COMPILER, "-g"], source, tmp_path, "-O1") for source in PARTS]
    flags = [*COMPILER, "-g", *X86_FLAGS["avx2"], "-DSPARSELANE_AVX2"]
    objects.append(compile_with(flags, SOURCES / "kernels_avx2.cpp", tmp_path, "-O1"))
    program = link(COMPILER, objects, tmp_path / "compare")
    check(run(["valgrind", "--quiet", "--error-exitcode=9", str(program)]), "avx2")


def test_the_whole_engine_is_clean(tmp_path: Path) -> None:
    """Python has habits that valgrind dislikes; what counts is what happens in or below the engine."""
    artifacts = []
    for name, changes in {
        "heads": {"hidden": 64, "heads": 2, "ffn": 96},
        "odd": {"hidden": 36, "heads": 4, "ffn": 75, "task": "text-classification"},
        "float32": {"hidden": 27, "heads": 3, "attention": "float32", "embeddings": "int8-symmetric-per-row-127"},
        "dense": {"sparsity": 0.0, "family": "distilbert", "task": "token-classification"},
        "product": {"embeddings": "product-4x256"},
    }.items():
        write_random_artifact(tmp_path / name, layers=2, positions=80, **changes)
        artifacts.append(str(tmp_path / name))
    report = tmp_path / "report.xml"
    command = ["valgrind", "--quiet", "--fair-sched=yes", "--xml=yes", f"--xml-file={report}", "--num-callers=30"]
    done = subprocess.run(
        [*command, sys.executable, "-c", FORWARD, *artifacts],
        env=os.environ | {"PYTHONMALLOC": "malloc", "OPENBLAS_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = []
    for error in ET.parse(report).getroot().iter("error"):
        # The engine itself, or what it called of the C library: copies.
        nearest = [frame.findtext("obj", "") for frame in error.findall("stack/frame")[:2]]
        if any("_engine" in where for where in nearest):
            found.append(f"{error.findtext('kind')}: {error.findtext('what') or error.findtext('xwhat/text')}")
    assert not found, "\n".join(found)
