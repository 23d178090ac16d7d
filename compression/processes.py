"""How several processes make one run: who takes which windows, who adds up, who writes.

Gradients are added by hand and not by DistributedDataParallel: a process may have no window of a short batch, a model
may have parts that a task does not use, and a part of a batch counts by its examples or tokens, not by 1 / processes.
"""

import datetime
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor, nn

# The main process judges and writes alone while the others wait: hours for a large validation set on a slow machine.
# A process that died does not wait for this, its launcher ends the others.
_TIMEOUT = datetime.timedelta(days=2)

# Gradients are added in pieces of about this many numbers: few enough calls, little extra memory (64 MB).
_BUCKET = 1 << 24

_Result = TypeVar("_Result")


def state() -> PartialState:
    """Return what this process is among those that `accelerate launch` or torchrun started; alone without them."""
    return PartialState(cpu=not torch.cuda.is_available(), timeout=_TIMEOUT)


def device() -> torch.device:
    """Return the device of this process: its own GPU, or the CPU."""
    found: torch.device = state().device
    return found


def windows_at_once() -> int:
    """Return how many windows to ask a model of that only has to answer: more on a GPU, whose kernels want work."""
    return 32 if device().type == "cpu" else 256


def main_only(work: Callable[[], _Result]) -> _Result | None:
    """Do `work` in the main process while the others wait; they get None."""
    result = work() if state().is_main_process else None
    state().wait_for_everyone()
    return result


def take_parts(numbers: Sequence[int], accumulation: int) -> list[list[int]]:
    """Cut a global batch into accumulation x processes nearly equal parts; return this process's that are not empty."""
    here = state()
    parts = np.array_split(np.asarray(numbers), accumulation * here.num_processes)
    return [part.tolist() for part in parts[here.process_index :: here.num_processes] if len(part)]


def add_up(values: Mapping[str, float]) -> dict[str, float]:
    """Return the sums of `values`, the same keys in the same order everywhere, over all processes."""
    if state().num_processes == 1:
        return dict(values)
    # GPUs' NCCL adds float64 too: counts of tokens stay exact.
    sums = torch.tensor(list(values.values()), dtype=torch.float64, device=device())
    torch.distributed.all_reduce(sums)
    return dict(zip(values, sums.tolist(), strict=True))


def collect(mine: dict[int, _Result]) -> dict[int, _Result] | None:
    """Give the main process what all processes have, by number; the others get None."""
    if state().num_processes == 1:
        return mine
    everything: list[dict[int, _Result]] = [{} for _ in range(state().num_processes)]
    torch.distributed.gather_object(mine, everything if state().is_main_process else None)
    return {key: value for part in everything for key, value in part.items()} if state().is_main_process else None


@torch.no_grad()
def add_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its sum over all processes; a process without one adds zeros.

    A parameter that no process used keeps no gradient, so that the optimizer leaves it alone as it does in one process.
    """
    if state().num_processes == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    used = torch.tensor([float(parameter.grad is not None) for parameter in trained], device=device())
    torch.distributed.all_reduce(used)
    bucket: list[Tensor] = []
    for parameter, users in zip(trained, used.tolist(), strict=True):
        if not users:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        bucket.append(parameter.grad)
        if sum(gradient.numel() for gradient in bucket) >= _BUCKET:
            _add_bucket(bucket)
            bucket = []
    if bucket:
        _add_bucket(bucket)


def _add_bucket(gradients: Sequence[Tensor]) -> None:
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    for gradient, summed in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))


def launched_alone() -> bool:
    """Tell whether `accelerate launch --cpu --num_processes N` started this process, N > 1: it starts only one then."""
    return "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ and state().num_processes == 1


def end() -> None:
    """Leave the process group in good order; torch warns of a process that just goes."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
