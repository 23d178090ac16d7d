"""`sparselane predict` over files: forms, bad rows, the same answers as the server, and going on after kill -9."""

import csv
import fcntl
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.rows import read_rows
from tests.service import artifacts
from tests.service.artifacts import CLS, NER, QA
from tests.service.test_cli import run
from tests.service.test_server import ROOT, environment, running
from tests.service.test_windows import TEXTS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifacts.write_all(tmp_path_factory.mktemp("models"))


def predict(folder: Path, model: str, source: object, *more: object, stdin: str | None = None) -> tuple[int, str, str]:
    return run("predict", model, "--models-dir", folder, "--threads", 1, "--input", source, *more, stdin=stdin)


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_answers_are_the_servers(folder: Path, tmp_path: Path) -> None:
    texts = ["john was in london " * count for count in (1, 3, 40, 2, 9)] + [
        "é😀 mary",
        "the film\r\nwas good\u0000",
    ] * 20
    inputs = {QA: [{"question": "who was in paris?", "context": text} for text in texts], CLS: texts, NER: texts}
    with running(folder) as server:
        for task, items in inputs.items():
            name = artifacts.NAMES[task]
            rows = items if task == QA else [{"text": item, "id": number} for number, item in enumerate(items)]
            output = tmp_path / f"{name}.out.ndjson"
            assert predict(folder, name, write(tmp_path / f"{name}.ndjson", rows), "--output", output)[0] == 0
            found = lines(output)
            assert [row["line"] for row in found] == list(range(1, len(items) + 1))
            for item, row in zip(items, found, strict=True):
                status, answer = server.ask("POST", f"/v1/{task}", {"inputs": item})
                assert (status, answer["results"]) == (200, [row["results"]])
            if task != QA:
                assert [row["id"] for row in found] == list(range(len(items)))
        assert server.stop() == 0


BAD = [
    ("no json", "no JSON"),
    ("7", "the row is 7, must be an object with text"),
    ('{"txt": "a"}', "no 'text'; did you mean 'txt'?"),
    ('{"text": 7}', "input: Input should be a valid string"),
    ('{"text": " "}', "no words"),
    ('{"text": "\\ud800"}', "half a surrogate pair"),
    (json.dumps({"text": "a" * 100_001}), "100001 characters"),
    ("[" * 100_000, "no JSON"),
]


def test_bad_rows_are_named_and_stop_nothing(folder: Path, tmp_path: Path) -> None:
    good = '{"text": "a film", "id": 1}'
    source = tmp_path / "in.ndjson"
    body = (
        "\n".join([good, "", *(bad for bad, _ in BAD), '"a bad film"']).encode()
        + b'\n{"text": "\xff"}\n'
        + good.encode()
    )
    source.write_bytes(b"\xef\xbb\xbf" + body)
    output = tmp_path / "out.ndjson"
    code, out, error = predict(folder, "sentiment", source, "--output", output)
    assert (code, out) == (0, "")
    assert "12 rows in" in error
    assert "9 bad rows, see" in error
    assert [(row["line"], row.get("id")) for row in lines(output)] == [(1, 1), (11, None), (13, 1)]
    found = lines(tmp_path / "out.ndjson.errors.ndjson")
    assert [row["line"] for row in found] == [*range(3, 11), 12]
    for row, (_, message) in zip(found, [*BAD, ("", "not UTF-8")], strict=True):
        assert message in row["error"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.ndjson", "out.ndjson", "out.ndjson.errors.ndjson"]


def test_strict_stops_at_the_first_bad_row_and_goes_on_once_it_is_right(folder: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "in.ndjson", tmp_path / "out.ndjson"
    source.write_text('"a film"\n"b film"\n7\n"c film"\n')
    code, _, error = predict(folder, "sentiment", source, "--output", output, "--strict")
    assert (code, "line 3: the row is 7" in error, output.exists()) == (1, True, False)
    source.write_text('"a film"\n"b film"\n"better"\n"c film"\n')
    code, _, error = predict(folder, "sentiment", source, "--output", output, "--strict")
    assert (code, "2 were there" in error) == (0, True)
    assert [row["line"] for row in lines(output)] == [1, 2, 3, 4]


def test_csv_there_and_back(folder: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    rows = [
        ["1", 'a good\r\nfilm, "quoted"', "good"],
        ["2", "bad", "bad"],
        ["3"],
        ["4", " ", "bad"],
        ["5", "é😀 film", ""],
    ]
    with source.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "text", "label"], *rows])
    code, _, error = predict(folder, "sentiment", source, "--output", output, "--parameters", '{"top_k": 1}')
    assert (code, "2 bad rows" in error) == (0, True)
    with output.open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == ["id", "label", "line", "predicted_label", "predicted_score", "results"]
    assert [(row["id"], row["label"], row["line"]) for row in found] == [
        ("1", "good", "2"),
        ("2", "bad", "4"),
        ("5", "", "7"),
    ]
    for row in found:
        (entry,) = json.loads(row["results"])
        assert (row["predicted_label"], float(row["predicted_score"])) == (entry["label"], entry["score"])
    assert [row["line"] for row in lines(tmp_path / "out.csv.errors.ndjson")] == [5, 6]


def test_csv_of_questions_to_ndjson_and_a_missing_column(folder: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "in.csv", tmp_path / "out.jsonl"
    source.write_text("context,question\nmary was in london,who\n")
    assert predict(folder, "qa", source, "--output", output)[0] == 0
    assert "mary was in london".find(lines(output)[0]["results"][0]["answer"]) >= 0
    source.write_text("contxt,question\na,b\n")
    code, _, error = predict(folder, "qa", source, "--output", output)
    assert (code, "no column 'context'; did you mean 'contxt'?" in error) == (2, True)


@pytest.mark.parametrize(
    ("name", "content", "field"),
    [
        ("in.csv", "text,line\na,7\n", "line"),
        ("in.csv", "text,predicted_label\na,good\n", "predicted_label"),
        ("in.ndjson", '\n{"text": "a", "results": 7}\n', "results"),
    ],
)
def test_a_field_that_the_output_adds_is_refused_before_the_work(
    folder: Path, tmp_path: Path, name: str, content: str, field: str
) -> None:
    (tmp_path / name).write_text(content)
    code, _, error = predict(folder, "sentiment", tmp_path / name, "--output", tmp_path / "out.ndjson")
    assert code == 2 and f"the input has a field '{field}', which the output adds" in error
    assert not (tmp_path / "out.ndjson").exists()


def test_half_a_surrogate_pair_in_a_carried_field_comes_out_as_it_went_in(folder: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "in.ndjson", tmp_path / "out.ndjson"
    source.write_text('{"text": "a", "id": "\\ud83d"}\n{"text": "b", "line": 3}\n')
    assert predict(folder, "sentiment", source, "--output", output)[0] == 0
    assert [row["id"] for row in lines(output)] == ["\ud83d"]
    (bad,) = lines(tmp_path / "out.ndjson.errors.ndjson")
    assert "the row has a field 'line'" in bad["error"]


def test_stdin_and_stdout(folder: Path) -> None:
    code, out, error = predict(folder, "sentiment", "-", "--format", "ndjson", stdin='{"text": "a", "id": 7}\n7\n"b"\n')
    assert (code, [json.loads(line)["line"] for line in out.splitlines()]) == (0, [1, 3])
    assert "line 2: the row is 7" in error
    code, _, error = predict(folder, "sentiment", "-", stdin='"a"\n')
    assert (code, "say --format" in error) == (2, True)


def test_arguments_that_do_not_go_together(folder: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.ndjson", ["a"])
    assert predict(folder, "sentiment", source, "a text")[0] == 2
    assert run("predict", "sentiment", "a", "--models-dir", folder, "--output", tmp_path / "x.ndjson")[0] == 2
    assert predict(folder, "sentiment", tmp_path / "nothing.ndjson")[0] == 2


def start(folder: Path, source: Path, output: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "service", "predict", "sentiment", "--models-dir", str(folder), "--threads", "1"]
    command += ["--input", str(source), "--output", str(output)]
    return subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)


def test_a_run_that_was_killed_goes_on_to_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    rows: list[Any] = [
        {"text": f"the film {number} was good " * (1 + number % 60), "id": number} for number in range(1000)
    ]
    rows[500:500] = [7, {"text": " "}]
    source = write(tmp_path / "in.ndjson", rows)
    assert predict(folder, "sentiment", source, "--output", tmp_path / "whole.ndjson")[0] == 0
    output = tmp_path / "out.ndjson"
    part = tmp_path / "out.ndjson.part"
    kills = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        with start(folder, source, output) as process:
            while process.poll() is None and (not part.exists() or part.stat().st_size < before + 70_000):
                time.sleep(0.002)
            if process.poll() is not None:
                break
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert not output.exists()
        kills += 1
        with part.open("ab") as file:  # a write that the kill cut in two
            file.write(b'{"line": 99')
    assert kills >= 2
    assert process.returncode == 0
    assert output.read_bytes() == (tmp_path / "whole.ndjson").read_bytes()
    assert lines(tmp_path / "out.ndjson.errors.ndjson") == lines(tmp_path / "whole.ndjson.errors.ndjson")
    assert not part.exists()


@pytest.fixture
def stopped(folder: Path, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """An input of which two rows are done."""
    source, output = tmp_path / "in.ndjson", tmp_path / "out.ndjson"
    source.write_text('"a film"\n"b film"\n7\n')
    assert predict(folder, "sentiment", source, "--output", output, "--strict")[0] == 1
    yield source, output


def test_what_is_done_is_not_taken_for_another_input(folder: Path, stopped: tuple[Path, Path]) -> None:
    source, output = stopped
    for other in ('"a film"\n"another"\n', '"a film"\n', '"another"\n"b film"\n'):
        source.write_text(other)
        code, _, error = predict(folder, "sentiment", source, "--output", output)
        assert (code, "up to line 2 is not the one" in error) == (2, True)


def test_what_is_done_is_not_taken_for_another_model_or_parameters(folder: Path, stopped: tuple[Path, Path]) -> None:
    source, output = stopped
    code, _, error = predict(folder, "sentiment", source, "--output", output, "--parameters", '{"top_k": 1}')
    assert (code, "a run with another parameters" in error) == (2, True)
    code, _, error = predict(folder, "ner", source, "--output", output)
    assert (code, "a run with another model and weights and parameters" in error) == (2, True)


def test_two_processes_do_not_write_one_part_file(folder: Path, stopped: tuple[Path, Path]) -> None:
    source, output = stopped
    with output.with_name("out.ndjson.part").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, _, error = predict(folder, "sentiment", source, "--output", output)
    assert (code, "another process writes" in error) == (2, True)


@given(st.lists(st.tuples(TEXTS, TEXTS)))
def test_csv_rows_are_what_was_written(rows: list[tuple[str, str]]) -> None:
    file = io.StringIO(newline="")
    csv.writer(file).writerows([("id", "text"), *rows])
    read = list(read_rows(io.BytesIO(file.getvalue().encode()), "csv", CLS))
    assert [(row.carried["id"], row.item) for row in read] == rows


@given(st.binary(max_size=300), st.sampled_from(["ndjson", "csv"]))
def test_any_bytes_are_rows_or_say_why_not(data: bytes, form: Any) -> None:
    head = b"text,id\n" if form == "csv" else b""
    for row in read_rows(io.BytesIO(head + data), form, CLS):
        assert row.wrong != ""
        assert row.wrong is None or row.item is None
        assert 0 < row.end <= len(head + data)
