"""A training step recorded once for each shape, then replayed: a small model on a GPU waits for launches, not for work.

A step of MiniLM is about a thousand kernels of some microseconds each, and Python needs longer to launch one than the
GPU to run it. A CUDA graph launches all of them at once. What a recorded step reads and writes must stay where it is:
weights, optimizer state, learning rate and masks are changed in place, a batch is copied to where the recorded one was.
"""

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from compression.objective import Batch

log = logging.getLogger("sparselane")

# A shape is worth recording when it comes again; and lazy parts of torch and of the optimizer must be there by then.
FIRST_EAGER = 2


class Recorder:
    """Does `work` on batches: the first of a shape directly, later ones by replaying what one of them recorded.

    `work` must not wait for the GPU, must leave no gradient behind, and return a tensor of fixed size. It is called on
    another stream than the caller's, which waits for it.
    """

    def __init__(self, work: Callable[[Batch], Tensor]) -> None:
        """Record nothing yet."""
        self._work = work
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._seen: Counter[tuple[torch.Size, torch.Size]] = Counter()
        self._recorded: dict[tuple[torch.Size, torch.Size], tuple[torch.cuda.CUDAGraph, Batch, Tensor]] = {}
        self._failed = False

    def __call__(self, batch: Batch) -> Tensor:
        """Do one step and return what `work` returns; its values are those of this step until the next call."""
        shape = batch.ids.shape, batch.targets.shape
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            if shape not in self._recorded and self._seen[shape] >= FIRST_EAGER and not self._failed:
                self._try_to_record(shape, batch)
            if shape in self._recorded:
                graph, place, result = self._recorded[shape]
                for name in ("ids", "types", "attended", "targets"):
                    getattr(place, name).copy_(getattr(batch, name))
                graph.replay()
            else:
                self._seen[shape] += 1
                result = self._work(batch)
        torch.cuda.current_stream().wait_stream(self._stream)
        return result

    def forget(self) -> None:
        """Drop what is recorded: something that it reads or writes has moved."""
        self._recorded.clear()
        self._pool = torch.cuda.graph_pool_handle()

    def _try_to_record(self, shape: tuple[torch.Size, torch.Size], batch: Batch) -> None:
        """Record a shape; where torch cannot, all steps are done directly from now on: the same result, more slowly."""
        try:
            self._recorded[shape] = self._record(batch)
        except RuntimeError as error:
            log.warning("training steps are not recorded, which costs time: %s", str(error).splitlines()[0])
            self._failed = True

    def _record(self, batch: Batch) -> tuple[torch.cuda.CUDAGraph, Batch, Tensor]:
        place = dataclasses.replace(
            batch, **{name: getattr(batch, name).clone() for name in ("ids", "types", "attended", "targets")}
        )
        graph = torch.cuda.CUDAGraph()
        # All shapes share one pool: no two are replayed at once, and nothing outlives a step but what was there before.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            result = self._work(place)
        return graph, place, result
