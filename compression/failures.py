"""What stops a run, said in one line: what happened, what is kept, how to go on."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch

GO_ON = "the same command goes on from there"

# A polite kill, Ctrl-C and a closed terminal.
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

# torch's CPU allocator and C++ say it in words only; torch.OutOfMemoryError and MemoryError are types.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "Cannot allocate memory")


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and why. The last checkpoint is kept."""


class InterruptedTrainingError(TrainingError):
    """Training was stopped by a signal after it saved its state; `number` is the signal's."""

    def __init__(self, message: str, number: int) -> None:
        """Keep the number for the exit status."""
        super().__init__(message)
        self.number = number


class StopRequest:
    """Which signal asked for a stop; 0 while none did."""

    number = 0


@contextmanager
def stop_signals(*, launched: bool) -> Iterator[StopRequest]:
    """Turn the first SIGTERM, SIGINT or SIGHUP inside the block into a request; a second one acts as before it.

    A process that was `launched` beside others gets Ctrl-C twice, from the terminal and from its launcher, so there
    all of them count as one; the launcher kills after half a minute.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # Python lets only the main thread handle signals
        return
    before = {number: signal.getsignal(number) for number in _STOPS}

    def ask(number: int, _frame: FrameType | None) -> None:
        request.number = number
        if not launched:
            restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # nohup: a closed terminal is to be ignored
            signal.signal(number, ask)
    try:
        yield request
    finally:
        restore()


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception means that memory could not be had, on a GPU or on the CPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
