"""Runs many recipes at once, each in a process of its own: one small model leaves most of a large GPU idle.

A job begins when the folders it needs are there and a place is free, the first of the list first. What is finished is
not done again, what was stopped goes on where it was. Every process is a fork of one that has imported the trainer: a
start costs a second or two. The parent must not have touched a GPU.
"""

import multiprocessing
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from compression.train import append_metrics, read_metrics

POLL_SECONDS = 0.5
LOGITS = "teacher_logits.safetensors"
# What a stopped training needs to finish its step and to write its state.
GRACE_SECONDS = 60.0


@dataclass(frozen=True)
class Job:
    """A recipe (TOML) to run into `folder`, once the folders of `needs` are there.

    `teacher` is a run folder whose finished teacher this run takes for its own: of the same recipe but for what comes
    after that stage. `siblings` are run folders with the same teacher and windows: where one has kept the teacher's
    logits, or judged it on all of the validation set, that is taken.
    """

    folder: Path
    recipe: str
    needs: tuple[Path, ...] = ()
    teacher: Path | None = None
    siblings: tuple[Path, ...] = ()

    @property
    def result(self) -> Path:
        """The folder that is there when the job is done."""
        return self.folder / ("pruned" if "[text]" in self.recipe else "artifact")

    @property
    def is_ready(self) -> bool:
        """Whether all that the job needs is there."""
        taught = self.teacher is None or (self.teacher / "teacher").is_dir()
        return taught and all(need.is_dir() for need in self.needs)


def run_jobs(
    jobs: Sequence[Job],
    data: Path,
    at_once: int,
    threads: int = 1,
    seconds: float = float("inf"),
    *,
    record: bool = False,
) -> list[Job]:
    """Run jobs, `at_once` of them at a time, for at most `seconds`; return those that are not done at the end.

    A job that fails leaves its reason in run.log of its folder; the others go on. When the time is over the running
    ones are asked to save their state and stop. `threads` and `record` are those of `run_line`.
    """
    context: Any = multiprocessing.get_context("fork")  # spawned processes would import the trainer one by one
    waiting = [job for job in jobs if not job.result.is_dir()]
    running: dict[Job, Any] = {}
    began = monotonic()
    while (waiting or running) and monotonic() - began < seconds:
        for job, process in list(running.items()):
            if not process.is_alive():
                _say(job, f"exit status {process.exitcode}" if process.exitcode else "done", began)
                del running[job]
        ready = [job for job in waiting if job.is_ready]
        if not ready and not running:
            break  # what they need has failed, or was never asked for
        for job in ready[: at_once - len(running)]:
            waiting.remove(job)
            running[job] = context.Process(target=_run, args=(job, data, threads, record))
            running[job].start()
            _say(job, "begins", began)
        sleep(POLL_SECONDS)
    _stop(list(running.values()))
    return [job for job in jobs if not job.result.is_dir()]


def _say(job: Job, what: str, began: float) -> None:
    print(f"{monotonic() - began:7.1f} s  {job.folder}: {what}", file=sys.stderr, flush=True)


def _stop(processes: Sequence[Any]) -> None:
    for process in processes:
        process.terminate()
    end = monotonic() + GRACE_SECONDS
    for process in processes:
        process.join(max(0.0, end - monotonic()))
        if process.is_alive():
            process.kill()


def _run(job: Job, data: Path, threads: int, record: bool) -> None:
    """Be the process of a job."""
    job.folder.mkdir(parents=True, exist_ok=True)
    with (job.folder / "run.log").open("ab", buffering=0) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        recipe = job.folder / "job.toml"
        recipe.write_text(job.recipe, encoding="utf-8")
        if job.teacher:
            take_teacher(job.teacher, job.folder)
        take_logits(job.siblings, job.folder)
        take_scores(job.siblings, job.folder)
        import torch

        from compression.line import run_line

        torch.set_num_threads(threads)
        print(run_line(recipe, data, job.folder, threads, record=record), flush=True)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)  # without the parent's handlers


def take_teacher(source: Path, target: Path) -> None:
    """Give a run folder another's finished teacher, with what its metrics say of it, unless it has one."""
    if (target / "teacher").is_dir():
        return
    scratch = target / "teacher.taken"
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(source / "teacher", scratch, copy_function=os.link)
    lines = (source / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    with (target / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(line for line in lines if '"stage": "teacher"' in line)
    scratch.rename(target / "teacher")


def take_logits(siblings: Sequence[Path], target: Path) -> None:
    """Give a run folder the teacher's logits that another has kept, unless it has them: they are the same numbers."""
    kept = target / LOGITS
    for sibling in siblings:
        if not kept.exists() and (sibling / LOGITS).is_file():
            kept.hardlink_to(sibling / LOGITS)


def take_scores(siblings: Sequence[Path], target: Path) -> None:
    """Give a run folder what another found when it judged their teacher, unless it has judged it: minutes of a CPU."""

    def scores(folder: Path) -> list[dict[str, Any]]:
        return [line for line in read_metrics(folder) if line["stage"] == "teacher" and "full" in line]

    for sibling in siblings:
        if not scores(target) and scores(sibling):
            append_metrics(target, scores(sibling)[0])
