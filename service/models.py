"""The models that serve, and which of them answers a request."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from service.errors import InvalidRequestError, UnknownModelError, did_you_mean
from service.windows import Floats, Ints, Windows


class Forward(Protocol):
    """The engine's arithmetic over a ragged batch of B sequences, T tokens in all; it releases the interpreter lock."""

    def __call__(self, input_ids: Ints, lengths: Ints, type_ids: Ints | None) -> Floats:
        """Return [B, labels] for text classification, [T, labels] otherwise, from int32 [T], [B] and [T]."""


@dataclass(frozen=True)
class Model:
    """One model that serves. `details` (precision, sparsity, sha256, isa, threads) are for people and /metrics.

    `multi_label`: each label of a text holds or not by itself. `no_answer_threshold`: how much more than the best span
    no answer must be worth to be the answer; None: there always is one.
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
    no_answer_threshold: float | None = None

    @property
    def rows_are_tokens(self) -> bool:
        """Whether `forward` answers a row per token, not per sequence."""
        return self.task != "text-classification"


@dataclass(frozen=True)
class Models:
    """The models that serve, by name, and for each artifact that does not serve, why."""

    serving: Mapping[str, Model]
    failures: Mapping[str, str]

    def find(self, task: str, name: str | None) -> Model:
        """Return the model called `name`, or the task's first by name.

        Raises:
            UnknownModelError: there is none; the message lists those that there are.
            InvalidRequestError: it does another task.
        """
        able = sorted(model.name for model in self.serving.values() if model.task == task)
        if name is None:
            if not able:
                raise UnknownModelError(f"no model here does {task}{self._failed()}")
            return self.serving[able[0]]
        if name not in self.serving:
            there = f"; here: {', '.join(sorted(self.serving)) or 'none'}{self._failed()}"
            raise UnknownModelError.at(
                "/model", f"there is no such model{did_you_mean(name, self.serving)}{there}", value=name
            )
        if self.serving[name].task != task:
            raise InvalidRequestError.at(
                "/model",
                f"the model does {self.serving[name].task}; ask it at /v1/{self.serving[name].task}"
                + (f", or here one of: {', '.join(able)}" if able else ""),
                value=name,
            )
        return self.serving[name]

    def _failed(self) -> str:
        return f" (failed to load: {', '.join(sorted(self.failures))})" if self.failures else ""
