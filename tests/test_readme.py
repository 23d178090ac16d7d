"""The README says what is true: its table is the manifests', its calls give the answers that it prints."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from urllib.error import HTTPError

import pytest

from bench.results import ROOT, results_table, with_results
from tests.waiting import until

README = (ROOT / "README.md").read_text(encoding="utf-8")
# ```sh with a curl call, then ```json with its answer.
CALL = re.compile(r"```sh\n(curl [^`]*?)\n```\s+```json\n(.*?)\n```", re.DOTALL)
CALLS = CALL.findall(README)


def test_the_results_table_is_current() -> None:
    assert with_results(README, results_table(ROOT / "service" / "models")) == README


def test_the_results_table_needs_its_markers() -> None:
    with pytest.raises(ValueError, match="holds no"):
        with_results("no markers", "table")


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The embedded models behind a real server on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "service", "serve"]
    environment = {**os.environ, "SPARSELANE_HOST": "127.0.0.1", "SPARSELANE_PORT": str(number)}
    server = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        _wait_until_ready(number, server)
        yield number
    finally:
        server.terminate()
        assert server.wait(30) == 0


def _wait_until_ready(port: int, server: "subprocess.Popen[bytes]") -> None:
    said = ""

    def ready() -> bool:
        nonlocal said
        assert server.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=30) as answer:
                return bool(answer.status == 200)
        except HTTPError as error:  # it listens; what it says is why
            said = error.read().decode()
        except OSError as error:
            said = str(error)
        return False

    until(ready, why=lambda: said)


def test_the_readme_shows_the_three_tasks() -> None:
    paths = [re.search(r"/v1/[a-z-]+", call).group() for call, _ in CALLS]  # type: ignore[union-attr]
    assert paths == ["/v1/question-answering", "/v1/text-classification", "/v1/token-classification"]


@pytest.mark.parametrize(("call", "shown"), CALLS, ids=["question", "sentiment", "entities"])
def test_a_call_gives_the_answer_that_the_readme_shows(port: int, call: str, shown: str) -> None:
    words = shlex.split(call.replace("localhost:8000", f"127.0.0.1:{port}"))
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert rounded(json.loads(done.stdout)) == rounded(json.loads(shown))


def rounded(value: object) -> object:
    """Scores to two digits: kernels of other CPUs add in another order."""
    if isinstance(value, float):
        return round(value, 2)
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return {key: rounded(item) for key, item in value.items()} if isinstance(value, dict) else value
