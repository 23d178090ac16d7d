"""How long does a test wait? Until it is so, and never for ever: a regression fails and does not hang."""

from collections.abc import Callable
from time import monotonic, sleep

# Nothing that is waited for takes so long, on any machine that can run the tests.
PATIENCE_SECONDS = 120.0


def until(
    condition: Callable[[], object], seconds: float = PATIENCE_SECONDS, *, why: Callable[[], object] | None = None
) -> None:
    """Wait until `condition` is true; fail after so many seconds, with what `why` says then."""
    end = monotonic() + seconds
    while not condition():
        assert monotonic() < end, f"not in {seconds:g} s{f': {why()}' if why else ''}"
        sleep(0.01)
