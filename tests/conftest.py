"""For every test: no setting of the developer's shell reaches the code under test."""

import os

import pytest


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SPARSELANE_"):
            monkeypatch.delenv(name)
