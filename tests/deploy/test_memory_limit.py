"""The memory limit of k8s/base holds what it is for: the embedded models under 64 long requests at once, and reloads.

While a model is reloaded there are two of it. docs/operations.md, "Size", has the numbers of longer runs of the same.
"""

import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any

import httpx

from service.keys import new_key
from service.settings import EMBEDDED_MODELS, Settings
from tests.deploy.rendering import one, rendered
from tests.service.test_server import running

CLIENTS = 64
# So long, and until every model was reloaded, on any machine.
SECONDS = 5.0
LIMITS = {name: field.default for name, field in Settings.model_fields.items()}
TEXT = "The mill stands on the river near Celle. It was built in 1735, burned down in 1801, and ground rye until 1968. "


def requests() -> list[tuple[str, bytes]]:
    """Long ones of all kinds: many windows, the longest text, as many inputs as there may be, and the largest body."""
    longest = (TEXT * 1000)[: LIMITS["max_text_chars"]]
    question = "When was the mill built?"
    most = LIMITS["max_inputs"]
    share = LIMITS["max_body_bytes"] // most - 100
    asked: list[tuple[str, Any]] = [
        ("/v1/question-answering", {"inputs": {"question": question, "context": TEXT * 60}}),
        ("/v1/token-classification", {"inputs": TEXT * 60}),
        ("/v1/question-answering", {"inputs": {"question": question, "context": longest}}),
        ("/v1/text-classification", {"inputs": [TEXT] * most}),
        ("/v1/text-classification", {"inputs": [(TEXT * 1000)[:share]] * most}),
    ]
    return [(path, json.dumps(body).encode()) for path, body in asked]


def peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])  # type: ignore[index]


def ask(address: str, secret: str, number: int, done: Event) -> Counter[int]:
    asked, seen = requests(), Counter[int]()
    headers = {"x-api-key": secret, "content-type": "application/json"}
    with httpx.Client(base_url=address, headers=headers, timeout=300) as http:
        while not done.is_set():
            path, body = asked[number % len(asked)]
            seen[http.post(path, content=body).status_code] += 1
            number += 1
    return seen


def measure(tmp_path: Path, seconds: float) -> dict[str, Any]:
    """Bytes resident at rest and at most, the statuses of answers, and how many reloads there were."""
    secret, entry = new_key("ops", "admin")
    (tmp_path / "keys.toml").write_text(entry)
    with running(EMBEDDED_MODELS, SPARSELANE_KEYS_FILE=str(tmp_path / "keys.toml")) as process:
        address, pid = f"http://127.0.0.1:{process.port}", process.process.pid
        rest, reloads, end = peak_bytes(pid), 0, monotonic() + seconds
        with (
            ThreadPoolExecutor(CLIENTS) as clients,
            httpx.Client(base_url=address, headers={"x-api-key": secret}, timeout=300) as http,
        ):
            done = Event()
            asked = [clients.submit(ask, address, secret, number, done) for number in range(CLIENTS)]
            try:
                while monotonic() < end or not reloads:
                    for folder in EMBEDDED_MODELS.glob("*/manifest.json"):
                        assert http.post(f"/admin/models/{folder.parent.name}/reload").status_code == 200
                        reloads += 1
            finally:
                done.set()
            statuses = sum((answers.result() for answers in asked), Counter[int]())
        result = {"rest": rest, "peak": peak_bytes(pid), "statuses": statuses, "reloads": reloads}
        assert process.stop() == 0
    return result


def test_the_limit_holds_the_worst_that_we_know(tmp_path: Path) -> None:
    measured = measure(tmp_path, SECONDS)
    (container,) = one(rendered("base"), "Deployment")["spec"]["template"]["spec"]["containers"]
    limit = int(container["resources"]["limits"]["memory"].removesuffix("Mi")) << 20
    assert measured["reloads"] >= 3
    assert measured["statuses"][200] > 0
    # 503, 504: not in time, refused or late. 413: the last body has more tokens than the queue takes.
    assert set(measured["statuses"]) <= {200, 413, 503, 504}, measured
    assert measured["peak"] < 0.8 * limit, measured
