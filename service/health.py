"""Is this process alive, and should it be sent requests? Asked from any thread; never waits for the event loop."""

import asyncio
from time import perf_counter
from typing import Final

from service.errors import FieldError, NotReadyError
from service.metrics import Metrics
from service.middleware import Lifecycle
from service.models import Models
from service.pipeline import Pipeline

BEAT_SECONDS: Final = 0.25
# An event loop that has not turned for so long answers nobody now: other replicas should. And for so long: never again.
LATE_SECONDS: Final = 5.0
DEAD_SECONDS: Final = 30.0
# One call of the engine takes a second on the slowest CPU that makes sense; after this long it does not come back.
STUCK_SECONDS: Final = 60.0


class Health:
    """What /healthz, /readyz and /metrics say, on both ports."""

    def __init__(self, models: Models, lifecycle: Lifecycle, pipeline: Pipeline, metrics: Metrics) -> None:
        """Watch these; the heart beats once `beat` runs."""
        self._models = models
        self._lifecycle = lifecycle
        self._pipeline = pipeline
        self._metrics = metrics
        self._beaten_at: float | None = None

    async def beat(self) -> None:
        """Prove for ever that the event loop turns."""
        while True:
            self._beaten_at = perf_counter()
            await asyncio.sleep(BEAT_SECONDS)
            self._metrics.loop_lag.observe(max(0.0, perf_counter() - self._beaten_at - BEAT_SECONDS))

    def live(self) -> dict[str, str]:
        """Return the body of /healthz. Raises NotReadyError where nothing but a restart will help."""
        if why := self._broken(DEAD_SECONDS):
            raise NotReadyError("; ".join(why))
        return {"status": "alive"}

    def ready(self) -> dict[str, object]:
        """Return the body of /readyz. Raises NotReadyError with all the reasons."""
        if why := self._reasons():
            raise NotReadyError("; ".join(why), *(FieldError("", reason) for reason in why))
        return {"status": "ready", "models": sorted(self._models.serving)}

    def page(self) -> bytes:
        """Return the metrics."""
        self._metrics.ready.set(0 if self._reasons() else 1)
        return self._metrics.page()

    @property
    def engine_stuck(self) -> bool:
        """Whether a stop had to give up on a call of the engine: its thread is still there."""
        return self._pipeline.engine_stuck

    def _reasons(self) -> list[str]:
        failed = [f"{name}: {why}" for name, why in sorted(self._models.failures.items())]
        stopping = ["the server is stopping"] if self._lifecycle.stopping else []
        return failed + stopping + self._broken(LATE_SECONDS)

    def _broken(self, late: float) -> list[str]:
        now, since = perf_counter(), self._pipeline.engine_since
        if self._beaten_at is None:
            return ["the server is starting"]
        why = []
        if (silent := now - self._beaten_at) > late:
            why.append(f"the event loop has not turned for {silent:.0f} s")
        if since is not None and now - since > STUCK_SECONDS:
            why.append(f"a call of the engine has not returned for {now - since:.0f} s")
        if not self._pipeline.runs:
            why.append("the queue is not served any more")
        return why
