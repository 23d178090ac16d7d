"""What every task is made of: pure functions from an input to windows, and from logits to entries."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from pydantic import TypeAdapter

from service.models import Model
from service.schemas import Output, Strict
from service.windows import Encoded, Floats

Item = TypeVar("Item")
Parameters = TypeVar("Parameters", bound=Strict)
Entry = TypeVar("Entry", bound=Output)
ItemAsked = TypeVar("ItemAsked", covariant=True)
ParametersAsked = TypeVar("ParametersAsked", bound=Strict, covariant=True)


class Asked(Protocol[ItemAsked, ParametersAsked]):
    """A checked body, whichever contract it came by: inputs with the JSON pointer of each, and the parameters."""

    @property
    def parameters(self) -> ParametersAsked:
        """Return the task's parameters."""

    def items(self) -> Sequence[ItemAsked]:
        """Return the inputs."""

    def pointers(self) -> Sequence[str]:
        """Return the JSON pointer of each input."""


@dataclass(frozen=True)
class Task(Generic[Item, Parameters, Entry]):
    """One task. Its functions know nothing of HTTP or threads; `item` checks an input.

    `encode(model, item, parameters, pointer)` tokenizes and windows one input; it raises InvalidRequestError, naming
    the JSON pointer of the input. `decode(model, item, encoded, logits, parameters)` makes the entries of its answer
    from the logits of its windows. `golden(entries)` reduces entries to what a manifest's golden example expects.
    """

    name: str
    item: TypeAdapter[Item]
    parameters: type[Parameters]
    encode: Callable[[Model, Item, Parameters, str], Encoded]
    decode: Callable[[Model, Item, Encoded, Sequence[Floats], Parameters], list[Entry]]
    golden: Callable[[list[Entry]], Any]
