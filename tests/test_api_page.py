"""docs/api.md says what is true: its sessions and calls give what it shows, against the embedded models."""

import doctest
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.settings import EMBEDDED_MODELS
from tests.service.test_server import Process, running
from tests.test_readme import CALL, rounded

PAGE = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
CALLS = [call for name in ("Open Inference Protocol", "From DeepSparse") for call in CALL.findall(SECTIONS[name])]


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    with running(EMBEDDED_MODELS, SPARSELANE_NOTICE_SECONDS="0") as process:
        yield process


@pytest.mark.parametrize(("section", "steps"), [("Open Inference Protocol", 9), ("Python client", 6)])
def test_a_session_gives_what_the_page_shows(server: Process, section: str, steps: int) -> None:
    text = SECTIONS[section].replace("localhost:8000", f"127.0.0.1:{server.port}")
    session = doctest.DocTestParser().get_doctest(text, {}, section, None, None)
    result = doctest.DocTestRunner().run(session, clear_globs=False)
    session.globs["client"].close()
    assert (result.failed, result.attempted) == (0, steps)


@pytest.mark.parametrize(("call", "shown"), CALLS, ids=["question", "entities"])
def test_a_call_gives_the_answer_that_the_page_shows(server: Process, call: str, shown: str) -> None:
    words = shlex.split(call.replace("localhost:8000", f"127.0.0.1:{server.port}"))
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert rounded(json.loads(done.stdout)) == rounded(json.loads(shown))
