"""How models come and go while the server runs: loaded and proven beside the one that serves, then swapped."""

import asyncio
import logging
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Literal, TypeVar

import engine.artifact
from service.errors import FieldError, ModelRefusedError, StartupError, UnknownModelError, nearest
from service.keys import Keyring
from service.loading import artifact_name, artifact_paths, artifact_version, load_model
from service.metrics import Metrics
from service.models import Model, Models
from service.settings import Settings

log = logging.getLogger("sparselane")

Result = TypeVar("Result")
Kept = TypeVar("Kept")
State = Literal["serving", "unchanged", "unloaded"]


@dataclass(frozen=True)
class Change:
    """What became of one model: `version` is the one that serves now, `seconds` what loading and proving took."""

    name: str
    state: State
    version: str | None = None
    seconds: float = 0.0


class Reloader:
    """Loads, reloads and unloads models, one call after the other, off the event loop.

    Requests in flight hold the model that they began with and finish on it; its memory goes back to the system with
    the last of them. What fails to load changes nothing but `models.refused`.
    """

    def __init__(self, models: Models, keys: Keyring, settings: Settings, metrics: Metrics) -> None:
        """Change `models`, from the settings' models folder."""
        self._models = models
        self._keys = keys
        self._folder = settings.models_dir
        self._threads = settings.threads
        self._metrics = metrics
        self._turn = asyncio.Lock()
        self._worker = ThreadPoolExecutor(1, "loader")
        self._closed = False

    def close(self) -> None:
        """Stop; a model that is being loaded is finished first."""
        self._closed = True
        self._worker.shutdown()

    async def load(self, name: str) -> Change:
        """Serve what the models folder has under this name, whether or not the model serves already.

        Raises:
            UnknownModelError: the folder has no such model. ModelRefusedError: it cannot serve; the former goes on.
        """
        async with self._turn:
            found = await self._off_loop(_find, self._folder, self._served(), name)
            return await self._bring(name, found)

    async def reload(self, name: str) -> Change:
        """Do as `load`, for a model that serves.

        Raises:
            UnknownModelError: it does not serve, or the folder has it no longer. ModelRefusedError: as in `load`.
        """
        self._check_serves(name)
        return await self.load(name)

    async def unload(self, name: str) -> Change:
        """Serve a model no longer, and forget that one failed.

        Raises:
            UnknownModelError: there is no such model.
        """
        async with self._turn:
            if name not in {*self._models.failures, *self._models.refused}:
                self._check_serves(name)
            self._drop(name)
            return Change(name, "unloaded")

    async def reload_all(self) -> list[Change]:
        """Make the models that serve those of the folder, and the keys those of their file.

        Models whose files are the same byte for byte stay; new and changed ones are loaded; those that have gone from
        the folder are unloaded.

        Raises:
            ModelRefusedError: the keys file, the folder or some models cannot be used; all else is done.
        """
        async with self._turn:
            wrong = await self._read_keys()
            try:
                found = await self._off_loop(_names, self._folder, self._served())
            except StartupError as error:
                wrong.append(FieldError("", f"{error}; the models stay as they were"))
                changes = []
            else:
                changes = await self._follow(found, wrong)
        for change in changes:
            log.info("reload: model %s is %s", change.name, change.state)
        for one in wrong:
            log.error("reload: %s", one.message)
        if wrong:
            raise ModelRefusedError("; ".join(one.message for one in wrong), *wrong)
        return changes

    async def _read_keys(self) -> list[FieldError]:
        try:
            await self._off_loop(self._keys.read)
        except StartupError as error:
            return [FieldError("", f"{error}; the keys stay as they were")]
        return []

    async def _follow(self, found: Mapping[str, Path], wrong: list[FieldError]) -> list[Change]:
        """Serve what was `found`, and nothing else; add what cannot serve to `wrong`."""
        changes = []
        for name, path in found.items():
            try:
                changes.append(await self._bring(name, path, unless_same=True))
            except ModelRefusedError as error:
                wrong.append(FieldError(f"/models/{name}", error.detail))
        known = {*self._models.serving, *self._models.failures, *self._models.refused}
        for name in sorted(known - found.keys()):
            self._drop(name)
            changes.append(Change(name, "unloaded"))
        return changes

    async def _bring(self, name: str, path: Path, *, unless_same: bool = False) -> Change:
        began = perf_counter()
        former = self._models.serving.get(name)
        if unless_same and former and former.folder == path and await self._off_loop(_is_whole, path, former.version):
            self._forget_failure(name)
            return Change(name, "unchanged", former.version)
        try:
            model = await self._off_loop(load_model, path, self._threads)
            if model.name != name:
                raise StartupError(f"{path} changed its name to '{model.name}' while it was loaded")
        except Exception as error:  # whatever is wrong with a new model, the old one must go on
            raise self._refused(name, f"{type(error).__name__}: {error}") from error
        self._models.serving = {**self._models.serving, name: model}
        self._metrics.add_model(model)
        # The folder's name stood for a model that had no readable manifest.
        for known in {name} | ({path.name} & self._models.failures.keys()):
            self._forget_failure(known)
        self._metrics.model_loads.labels(name, "ok").inc()
        self._give_back_after(former)
        return Change(name, "serving", model.version, perf_counter() - began)

    def _refused(self, name: str, why: str) -> ModelRefusedError:
        self._models.refused = {**self._models.refused, name: why}
        serves = name in self._models.serving
        self._metrics.model_ready.labels(name).set(int(serves))
        self._metrics.model_loads.labels(name, "failed").inc()
        log.error("model %s is refused: %s", name, why)
        return ModelRefusedError(f"model {name} is refused: {why}" + ("; the former version goes on" if serves else ""))

    def _drop(self, name: str) -> None:
        former = self._models.serving.get(name)
        if former:
            self._models.missing = {**self._models.missing, name: former.task}
        self._models.serving = _without(self._models.serving, name)
        self._forget_failure(name)
        self._give_back_after(former)
        log.info("model %s is unloaded", name)

    def _forget_failure(self, name: str) -> None:
        """Say no more that a model failed, and nothing of it where it does not serve."""
        self._models.failures = _without(self._models.failures, name)
        self._models.refused = _without(self._models.refused, name)
        if name in self._models.serving:
            self._metrics.model_ready.labels(name).set(1)
        else:
            self._metrics.remove_model(name)

    def _served(self) -> dict[Path, str]:
        """Return which model each folder serves."""
        return {model.folder: model.name for model in self._models.serving.values() if model.folder}

    def _check_serves(self, name: str) -> None:
        if name not in self._models.serving:
            raise UnknownModelError(f"no model '{name}' serves here{nearest(name, sorted(self._models.serving))}")

    def _give_back_after(self, former: Model | None) -> None:
        """Once the last request has let go of a model, return its memory to the system: free() alone may keep it."""
        if former is None:
            return
        loop = asyncio.get_running_loop()

        def gone() -> None:
            # Called in whatever thread was last, just before the weights are freed; the loop's next turn is after that.
            if not self._closed:
                loop.call_soon_threadsafe(lambda: self._closed or self._worker.submit(engine.release_memory))

        weakref.finalize(former, gone).atexit = False

    async def _off_loop(self, work: Callable[..., Result], *arguments: object) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._worker, work, *arguments)


def _names(folder: Path, served: Mapping[Path, str]) -> dict[str, Path]:
    """Return the folder's artifacts by model name, where some `served`: see `artifact_name`.

    Raises:
        StartupError: see `artifact_paths`; two have one name.
    """
    found: dict[str, Path] = {}
    for path in artifact_paths(folder):
        name = artifact_name(path, served)
        if found.setdefault(name, path) is not path:
            raise StartupError(f"{found[name]} and {path} are both called '{name}'; rename one")
    return found


def _is_whole(path: Path, version: str) -> bool:
    """Whether an artifact is the one of this version, and its files are what its manifest says."""
    try:
        engine.artifact.check_files(path, engine.read_manifest(path))
    except engine.ArtifactError:
        return False
    return artifact_version(path) == version


def _find(folder: Path, served: Mapping[Path, str], name: str) -> Path:
    try:
        found = _names(folder, served)
    except StartupError as error:
        raise ModelRefusedError(str(error)) from error
    if name not in found:
        raise UnknownModelError(f"no model '{name}' in {folder}{nearest(name, found)}")
    return found[name]


def _without(mapping: Mapping[str, Kept], name: str) -> dict[str, Kept]:
    return {key: value for key, value in mapping.items() if key != name}
