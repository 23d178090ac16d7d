"""The import rules of CONTRIBUTING.md, checked on syntax trees: nothing is run, conditional imports count too."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "engine": {"compression", "service", "torch", "transformers"},
    "service": {"compression", "torch", "transformers"},
    "compression": {"service"},
}


def imported(source: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.lineno, (node.module or "").partition(".")[0]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_package_imports_only_what_it_may(package: str) -> None:
    files = [path for pattern in ("*.py", "*.pyi") for path in sorted((ROOT / package).rglob(pattern))]
    assert files, f"{package}/ holds no Python file"
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files
        for line, name in imported(path.read_text(encoding="utf-8"))
        if name in FORBIDDEN[package]
    ]
    assert not wrong, "\n".join(wrong)


def test_the_walk_sees_every_form_of_import() -> None:
    source = (
        "import torch.nn as n\ndef f():\n    from service.app import x\n    from . import a\nif 0: import os, engine\n"
    )
    assert sorted(imported(source)) == [(1, "torch"), (3, "service"), (5, "engine"), (5, "os")]
