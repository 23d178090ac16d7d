"""What a request costs: the engine's seconds by tokens and threads, and the CPU's around it; from a file, too."""

import json
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import StartupError

_HOW: Final = "`sparselane plan --json` on a machine like those that will serve writes one"

Seconds = Annotated[float, Field(ge=0, lt=60)]


class EngineSeconds(BaseModel):
    """Seconds of a call, of each token, and of each token and token that it attends to, as in service/cost.py."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_call: Seconds
    per_token: Annotated[float, Field(gt=0, lt=60)]
    per_square: Seconds = 0.0

    def sequences(self, tokens: float, window: int) -> float:
        """Return the seconds that a text of so many tokens adds to a call: whole windows, and the rest."""
        whole, rest = divmod(tokens, window)
        return sum(
            count * size * (self.per_token + size * self.per_square) for count, size in ((whole, window), (1, rest))
        )


class Curve(BaseModel):
    """What requests to one model cost on one kind of machine.

    `engine`: seconds by number of threads. `per_request`, `per_request_token`: CPU seconds outside of the engine (HTTP,
    JSON, tokens, answers), of each request and of each of its tokens. `resident_bytes`: of the loaded server.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    window: Annotated[int, Field(ge=8)]
    max_batch_tokens: Annotated[int, Field(ge=64)]
    engine: Annotated[dict[Annotated[int, Field(ge=1)], EngineSeconds], Field(min_length=1)]
    per_request: Seconds
    per_request_token: Seconds
    resident_bytes: Annotated[int, Field(ge=0)]

    def outside(self, tokens: float) -> float:
        """Return the CPU seconds that a request takes outside of the engine."""
        return self.per_request + tokens * self.per_request_token

    def engine_with(self, threads: int) -> EngineSeconds:
        """Return the engine's seconds with so many threads: measured, or by Amdahl's law from one and the most.

        Raises:
            StartupError: only one thread was measured, and more are asked for.
        """
        if threads in self.engine:
            return self.engine[threads]
        most = max(self.engine)
        if most == 1 or 1 not in self.engine:
            known = ", ".join(map(str, sorted(self.engine)))
            raise StartupError(
                f"--cores is {threads}, the curve has threads {known}: nothing says what {threads} would do. Measure "
                "on a machine with more CPUs (--json there, --curve here), or plan with one core"
            )
        one, many = self.engine[1], self.engine[most]
        return EngineSeconds(
            **{
                name: _amdahl(getattr(one, name), getattr(many, name), most, threads)
                for name in EngineSeconds.model_fields
            }
        )


def _amdahl(one: float, many: float, threads: int, wanted: int) -> float:
    """Split a time that was measured with one and with several threads into what they share and what they do not."""
    alone = max(0.0, (many - one / threads) / (1 - 1 / threads))
    return alone + (one - alone) / wanted


def read_curve(path: Path) -> Curve:
    """Read a curve from a file of its own, or from a plan's. Raises StartupError where it cannot be read or is none."""
    try:
        values = json.loads(path.read_bytes())
        return Curve.model_validate(values.get("curve", values) if isinstance(values, dict) else values)
    except OSError as error:
        raise StartupError(f"the curve {path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        wrong = error.errors()[0]
        place = ".".join(str(part) for part in wrong["loc"])
        raise StartupError(f"{path} is no curve: {place + ': ' if place else ''}{wrong['msg']}; {_HOW}") from None
    except ValueError as error:
        raise StartupError(f"{path} is no JSON: {error}; {_HOW}") from None
