"""bench.image: the sum of an image's parts, and the time to a first answer of a real server."""

import sys
from pathlib import Path

import pytest

from bench import image
from tests.deploy.test_two_processes import free_ports


def test_every_byte_belongs_to_one_part(tmp_path: Path) -> None:
    package = "opt/sparselane/lib/python3.13/site-packages"
    files = {"usr/bin/python3": 5, f"{package}/numpy/a.py": 7, f"{package}/service/app.py": 11}
    files |= {f"{package}/service/models/qa/manifest.json": 13, "opt/sparselane/bin/sparselane": 17}
    for name, size in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    (tmp_path / "usr/bin/python").symlink_to("python3")
    expected = {"environment": 17, "models": 13, "service": 11, "numpy": 7, "base": 5}
    assert list(image.sizes(tmp_path).items()) == list(expected.items())


def test_the_first_answer_of_a_real_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port, probes = free_ports(2)
    for name, value in {"PORT": port, "PROBE_PORT": probes, "NOTICE_SECONDS": 0, "LOG_LEVEL": "warning"}.items():
        monkeypatch.setenv(f"SPARSELANE_{name}", str(value))
    url, rows = f"http://127.0.0.1:{port}", tmp_path / "start.csv"
    image.main(
        ["start", "--rounds", "1", "--url", url, "--csv", str(rows), "--", sys.executable, "-m", "service", "serve"]
    )
    head, numbers = rows.read_text().split()
    assert head == "seconds,cpu_seconds"
    seconds, cpu = map(float, numbers.split(","))
    assert seconds > 0
    assert cpu > 0


def test_a_command_that_ends_is_no_measurement() -> None:
    port, _ = free_ports(2)
    with pytest.raises(RuntimeError, match="the process ended"):
        image.first_answer(["/bin/false"], f"http://127.0.0.1:{port}")
