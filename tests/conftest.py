"""For every test: no setting of the developer's shell reaches the code under test, and no clock decides."""

import os

import pytest
from hypothesis import settings

# A deadline for each example is a test of the machine: a first call, or a busy CPU, takes longer.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SPARSELANE_"):
            monkeypatch.delenv(name)
