"""What is known about the request that is being answered: for its log line, its spans and its quota."""

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter, time_ns

from service.quotas import Bucket
from service.schemas import Usage


@dataclass
class RequestRecord:
    """Filled while a request is answered; who fills what is beside it. Times are those of `perf_counter`."""

    request_id: str = ""
    began: float = field(default_factory=perf_counter)
    # The same moment in nanoseconds since 1970.
    began_ns: int = field(init=False)
    # Seconds from then until its turn came (`deadlines.Door`); None: it did not come through the door.
    door: float | None = None
    trace_id: str | None = None
    # Access: the name of the key, never the key.
    caller: str | None = None
    quota: Bucket | None = None
    # The pipeline. A contract may answer a request in several calls: these add up.
    task: str | None = None
    model: str | None = None
    tokens: int = 0
    windows: int = 0
    texts: list[str] = field(default_factory=list)
    stages_began: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Look at the other clock."""
        self.began_ns = time_ns() - int((perf_counter() - self.began) * 1e9)

    def read(self, usage: Usage) -> None:
        """Add what the model reads."""
        self.tokens += usage.tokens
        self.windows += usage.windows

    def timed(self, began: float, stages: Mapping[str, float]) -> None:
        """Add the seconds of each stage, in the order in which they followed each other from `began` on."""
        self.stages_began = self.stages_began or began
        for stage, seconds in stages.items():
            self.stages[stage] = self.stages.get(stage, 0.0) + seconds


CURRENT: ContextVar[RequestRecord | None] = ContextVar("request", default=None)


def current() -> RequestRecord:
    """Return the record of the request at hand, or one that nobody reads where there is none."""
    return CURRENT.get() or RequestRecord()
