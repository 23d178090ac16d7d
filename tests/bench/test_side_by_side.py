"""Many recipes at once: each waits for what it needs, one that fails leaves the others alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import engine
from bench.side_by_side import LOGITS, Job, take_logits, take_scores, take_teacher
from compression.train import read_metrics
from tests.compression import tiny

TASK = "text-classification"
# In an interpreter of its own: jobs are forks, and a test's process has threads.
SCRIPT = """
import json, os, sys
from pathlib import Path
from bench.side_by_side import Job, run_jobs

def job(one):
    teacher = one["teacher"] and Path(one["teacher"])
    return Job(Path(one["folder"]), one["recipe"], tuple(map(Path, one["needs"])), teacher)

left = run_jobs([job(one) for one in json.loads(sys.argv[1])], Path(sys.argv[2]), at_once=2, seconds=float(sys.argv[3]))
print(json.dumps([str(job.folder) for job in left]))
"""


def run(jobs: list[Job], data: Path, seconds: float = 600) -> tuple[list[Path], str]:
    """Run jobs; return the folders of those that were left, and what was reported."""
    listed = [
        {
            "folder": str(job.folder),
            "recipe": job.recipe,
            "needs": [str(need) for need in job.needs],
            "teacher": job.teacher and str(job.teacher),
        }
        for job in jobs
    ]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(listed), str(data), str(seconds)],
        check=True,
        capture_output=True,
        text=True,
        timeout=900,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return [Path(folder) for folder in json.loads(done.stdout)], done.stderr


def test_jobs_wait_for_what_they_need_and_a_failure_is_its_own(tmp_path: Path) -> None:
    recipe = tiny.recipe(TASK, tiny.checkpoint(tmp_path / "base"), tmp_path)
    first, taught, broken = (tmp_path / "runs" / name for name in ("first", "taught", "broken"))
    jobs = [
        Job(taught, recipe, teacher=first),
        Job(broken, recipe.replace("text-classification", "text-guessing"), needs=(first / "teacher",)),
        Job(first, recipe),
        Job(tmp_path / "runs" / "never", recipe, needs=(tmp_path / "nowhere",)),
    ]
    left, report = run(jobs, tmp_path)
    assert left == [broken, tmp_path / "runs" / "never"]
    assert "broken: exit status 1" in report and "first: done" in report
    assert "RecipeError" in (broken / "run.log").read_text() and "text-guessing" in (broken / "run.log").read_text()
    one, other = (engine.read_manifest(folder / "artifact") for folder in (first, taught))
    assert one.files["model.safetensors"]["sha256"] == other.files["model.safetensors"]["sha256"], "the same recipe"
    assert one.raw["provenance"]["minutes"].keys() == other.raw["provenance"]["minutes"].keys()
    stamp = (first / "artifact" / "manifest.json").stat().st_mtime_ns
    assert run([Job(first, recipe)], tmp_path)[0] == []
    assert (first / "artifact" / "manifest.json").stat().st_mtime_ns == stamp, "what is done is not done again"


def test_when_the_time_is_over_the_rest_is_left(tmp_path: Path) -> None:
    recipe = tiny.recipe(TASK, tiny.checkpoint(tmp_path / "base"), tmp_path)
    folder = tmp_path / "runs" / "late"
    assert run([Job(folder, recipe)], tmp_path, seconds=0)[0] == [folder]


def test_a_teacher_is_taken_once_with_what_is_known_of_it(tmp_path: Path) -> None:
    source, target = tmp_path / "one", tmp_path / "two"
    (source / "teacher").mkdir(parents=True)
    (source / "teacher" / "config.json").write_text("{}")
    lines = [{"stage": "teacher", "minutes": 2.0}, {"stage": "prune", "minutes": 3.0}]
    (source / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    target.mkdir()
    for _ in range(2):
        take_teacher(source, target)
    assert list(read_metrics(target)) == lines[:1]
    assert (target / "teacher" / "config.json").read_text() == "{}"
    assert sorted(path.name for path in target.iterdir()) == ["metrics.jsonl", "teacher"]


def test_a_teachers_logits_are_taken_from_a_sibling_that_kept_them(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("nothing", "kept", "mine")]
    for folder in folders[1:]:
        folder.mkdir()
    (tmp_path / "kept" / LOGITS).write_bytes(b"logits")
    for _ in range(2):
        take_logits(folders[:2], tmp_path / "mine")
    assert (tmp_path / "mine" / LOGITS).samefile(tmp_path / "kept" / LOGITS)
    (tmp_path / "kept" / LOGITS).unlink()
    assert (tmp_path / "mine" / LOGITS).read_bytes() == b"logits"


def test_what_a_sibling_found_of_the_teacher_is_taken_once(tmp_path: Path) -> None:
    quick, full = {"stage": "teacher", "quick": {"f1": 0.5}}, {"stage": "teacher", "full": {"f1": 0.6}}
    lines = {"nothing": [], "looked": [quick], "judged": [quick, {"stage": "pruned", "full": {"f1": 0.4}}, full]}
    for name, written in lines.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in written))
    siblings = [tmp_path / name for name in (*lines, "absent")]
    (tmp_path / "mine").mkdir()
    take_scores(siblings[:2], tmp_path / "mine")
    assert list(read_metrics(tmp_path / "mine")) == []
    for _ in range(2):
        take_scores(siblings, tmp_path / "mine")
    assert list(read_metrics(tmp_path / "mine")) == [full]
