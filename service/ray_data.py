"""A corpus larger than one machine: a map step for Ray Data that answers one file (shard) after the other.

Each shard becomes a file of the same name, by the code of `sparselane predict`: under a temporary name, which keeps
what is done through any kill, then renamed. So each row is in the result once, and what a stopped run has finished or
begun is used by the next. All machines must see both folders, on a file system that renames and locks (not an object
store).
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Final

from service.errors import StartupError
from service.loading import load_model
from service.offline import answer_to_files
from service.pipeline import TASKS
from service.rows import form_of, read_rows
from service.settings import Settings

# Says of which run a folder of answers is; without it a finished shard of another model would be taken for this one's.
RUN: Final = "run.json"


class ShardAnswers:
    """Callable for `Dataset.map_batches`, one engine per actor: takes {"shard": paths}, gives {"shard", "done"}."""

    def __init__(self, artifact: str, output: str, threads: int, parameters: Mapping[str, Any] | None = None) -> None:
        """Load the artifact, with as many threads as the actor has CPUs.

        Raises:
            engine.ArtifactError, StartupError, GoldenError: see `load_model`. StartupError: `output` is of another run.
            ValidationError: `parameters` are none of the task's.
        """
        self._settings = Settings(threads=threads)
        self._model = load_model(Path(artifact), threads)
        self._parameters = TASKS[self._model.task].parameters.model_validate(dict(parameters or {}))
        self._output = Path(output)
        run = {"model": self._model.name, "weights": self._model.details["sha256"]}
        _claim(self._output, run | {"parameters": self._parameters.model_dump()})

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        """Answer the shards of a batch; `done` says how many rows that were.

        Raises:
            StartupError: another process answers the shard, or it changed since it was begun.
        """
        shards = [str(shard) for shard in batch["shard"]]
        return {"shard": shards, "done": [self._answer(Path(shard)) for shard in shards]}

    def _answer(self, shard: Path) -> str:
        target = self._output / shard.name
        if finished(target):
            return "was done before"
        form = form_of(shard, None)
        with shard.open("rb") as stream:
            rows = read_rows(stream, form, self._model.task)
            return answer_to_files(self._settings, self._model, self._parameters, rows, False, target, None, form, None)


def finished(target: Path) -> bool:
    """Return whether a shard's answers are whole; the last thing that happens to them is that the part file goes."""
    return target.exists() and not target.with_name(target.name + ".part").exists()


def answer_shards(
    artifact: str | Path,
    shards: Iterable[str | Path],
    output: str | Path,
    *,
    workers: int,
    threads: int = 1,
    parameters: Mapping[str, Any] | None = None,
) -> Iterator[dict[str, str]]:
    """Answer files on `workers` actors of `threads` CPUs each; yield `shard` and `done` of each when it is done.

    Ray must be initialized, or starts on this machine. Paths are those of the workers' machines. An actor that dies is
    replaced by Ray and its shard goes on where it was.

    Raises:
        StartupError: Ray is not installed, there are no files, or two have the same name.
    """
    paths = sorted(str(Path(path).resolve()) for path in shards)
    names = Counter(Path(path).name for path in paths)
    if not paths:
        raise StartupError("there are no shards: give files, for example Path('corpus').glob('*.ndjson')")
    if twice := [name for name, count in names.items() if count > 1]:
        raise StartupError(f"several shards are called {twice[0]}, and so would their answers be: rename them")
    data = _ray_data()
    items = data.from_items([{"shard": path} for path in paths], override_num_blocks=len(paths))
    arguments = (str(Path(artifact).resolve()), str(Path(output).resolve()), threads, dict(parameters or {}))
    done = items.map_batches(
        ShardAnswers, fn_constructor_args=arguments, batch_size=1, num_cpus=threads, concurrency=workers
    )
    yield from done.iter_rows()


def _ray_data() -> Any:
    try:
        import ray.data
    except ImportError:
        raise StartupError("Ray Data is not installed: pip install 'sparselane[ray]'") from None
    return ray.data


def _claim(output: Path, run: Mapping[str, Any]) -> None:
    """Make the folder of this run, or see that it is; several workers do so at once."""
    output.mkdir(parents=True, exist_ok=True)
    path = output / RUN
    with NamedTemporaryFile("w", dir=output, prefix=".", encoding="utf-8") as file, suppress(FileExistsError):
        json.dump(run, file)
        file.flush()
        os.link(file.name, path)  # unlike a rename it leaves the one that is there
    before = json.loads(path.read_text(encoding="utf-8"))
    if changed := [name for name in run if before.get(name) != run[name]]:
        raise StartupError(f"{output} has answers of a run with another {' and '.join(changed)}: choose another folder")
