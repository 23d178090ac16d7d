"""The models that serve, and which of them answers a request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from engine import Manifest
from service.cost import Cost
from service.errors import InvalidRequestError, UnknownModelError, did_you_mean
from service.windows import Floats, Ints, Windows


class Forward(Protocol):
    """The engine's arithmetic over a ragged batch of B sequences, T tokens in all; it releases the interpreter lock."""

    def __call__(self, input_ids: Ints, lengths: Ints, type_ids: Ints | None) -> Floats:
        """Return [B, labels] for text classification, [T, labels] otherwise, from int32 [T], [B] and [T]."""


@dataclass(frozen=True)
class Embeddings:
    """How many rows the embedding tables have: the engine takes no id, position or type beyond them."""

    words: int
    positions: int
    types: int


@dataclass(frozen=True)
class Model:
    """One model that serves. `details` (precision, sparsity, sha256, isa, threads) are for people and /metrics.

    `multi_label`: each label of a text holds or not by itself. `pairs`: it reads two texts together.
    `no_answer_threshold`: how much more than the best span no answer must be worth to be the answer; None: there always
    is one. `version` is the sha256 of the manifest, which holds those of the other files; `manifest` is of the artifact
    that it came from, in `folder`. `embeddings`: what raw tokens may be. `cost`: what the engine needs for it; learns.
    """

    name: str
    task: str
    labels: tuple[str, ...]
    windows: Windows
    max_answer_tokens: int | None
    uses_types: bool
    forward: Forward
    details: Mapping[str, str]
    multi_label: bool = False
    pairs: bool = False
    no_answer_threshold: float | None = None
    version: str = ""
    manifest: Manifest | None = None
    folder: Path | None = None
    embeddings: Embeddings = Embeddings(0, 0, 0)
    cost: Cost = field(default_factory=Cost)
    load_seconds: float = 0.0

    @property
    def rows_are_tokens(self) -> bool:
        """Whether `forward` answers a row per token, not per sequence."""
        return self.task != "text-classification"


@dataclass
class Models:
    """The models that serve, by name; and why others do not.

    `failures` failed at the start and keep /readyz at 503. `refused` are the last attempts since then that failed: the
    model that served before, if any, goes on. While the server runs, service/reloading.py alone replaces the mappings,
    as a whole: look a model up when a request comes, and keep it for that request only. `preferred` are names, the
    most wanted first, that go before others where a request names no model. `missing` are the tasks of models that
    served or failed at the start, and may come back.
    """

    serving: Mapping[str, Model]
    failures: Mapping[str, str]
    refused: Mapping[str, str] = field(default_factory=dict)
    preferred: Sequence[str] = ()
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def why_not(self) -> dict[str, str]:
        """The reasons of the models that do not serve, by name: of each the last one."""
        why = {**self.failures, **self.refused}
        return {name: reason for name, reason in why.items() if name not in self.serving}

    def default(self, task: str) -> Model | None:
        """Return the model for requests of a task that name none: the first preferred one that serves.

        Where no preferred model is known to do the task, it is the first by name. But none answers in place of
        preferred ones that do not serve: its labels are others.
        """
        able = {model.name for model in self.serving.values() if model.task == task}
        names = [name for name in self.preferred if name in able] or ([] if self._wanted(task) else sorted(able))
        return self.serving[names[0]] if names else None

    def _wanted(self, task: str) -> list[str]:
        """Name the preferred models of a task that do not serve."""
        return [name for name in self.preferred if name not in self.serving and self.missing.get(name) == task]

    def find(self, task: str, name: str | None) -> Model:
        """Return the model called `name`, or the task's default.

        Raises:
            UnknownModelError: there is none; the message lists those that there are.
            InvalidRequestError: it does another task.
        """
        if name is None:
            default = self.default(task)
            if default is None:
                raise UnknownModelError(f"{self._why_no_default(task)}{self._failed()}")
            return default
        model = self.named(name)
        if model.task != task:
            able = sorted(other.name for other in self.serving.values() if other.task == task)
            raise InvalidRequestError.at(
                "/model",
                f"the model does {model.task}; ask it at /v1/{model.task}"
                + (f", or here one of: {', '.join(able)}" if able else ""),
                value=name,
            )
        return model

    def named(self, name: str) -> Model:
        """Return the model called `name`, whatever it does. Raises UnknownModelError as `find` does."""
        model = self.serving.get(name)
        if model is None:
            there = f"; here: {', '.join(sorted(self.serving)) or 'none'}{self._failed()}"
            raise UnknownModelError.at(
                "/model", f"there is no such model{did_you_mean(name, self.serving)}{there}", value=name
            )
        return model

    def _why_no_default(self, task: str) -> str:
        able = sorted(model.name for model in self.serving.values() if model.task == task)
        if not able:
            return f"no model here does {task}"
        return f"the default for {task}, {' or '.join(self._wanted(task))}, does not serve; name one: {', '.join(able)}"

    def _failed(self) -> str:
        failed = ", ".join(sorted(self.why_not))
        return f" (failed to load: {failed})" if failed else ""
