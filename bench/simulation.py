"""Pods that serve in batches, event by event: as many as ten thousand side by side, one event of each per turn.

A pod has a queue and one server: when a batch ends, whatever waits becomes the next one, `most` requests at most, and
takes `fixed` seconds and the work of each. That is exact, not stepped: no event is moved in time. Pods meet only where
requests are routed (bench/fleet.py), so all of them can be advanced at once by numpy.
"""

from dataclasses import dataclass, field
from math import inf
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# As in service/schedule.py: predictions are means, and a full batch may come first and another share the last one.
MARGIN: Final = 1.25
FULL_BATCHES: Final = 2


@dataclass(frozen=True)
class Service:
    """How a pod serves: seconds of a call and of a request's mean work, most requests in a call.

    `deadline`: seconds after which an answer is late; `admits`: whether what would be late is refused instead.
    """

    fixed: float
    each: float
    most: int
    deadline: float = inf
    admits: bool = True


@dataclass(frozen=True)
class Arrivals:
    """Requests in the order of pods and then of time: pod, moment, seconds of work."""

    pod: Ints
    at: Floats
    work: Floats


@dataclass
class Answers:
    """What became of requests: moment of arrival and seconds until the answer, pod, and how many were refused."""

    at: Floats
    seconds: Floats
    pod: Ints
    refused: int


@dataclass
class Pods:
    """The queues and servers of `size` pods. `free` is when each ends its batch; `slow` multiplies its seconds."""

    service: Service
    size: int
    room: int = 256
    free: Floats = field(init=False)
    slow: Floats = field(init=False)
    count: Ints = field(init=False)
    busy: Floats = field(init=False)

    def __post_init__(self) -> None:
        """Begin with nobody there."""
        self.free, self.busy, self._queued = (np.zeros(self.size) for _ in range(3))
        self.slow = np.ones(self.size)
        self.count, self._head = (np.zeros(self.size, np.int64) for _ in range(2))
        self._at, self._work = (np.zeros((self.size, self.room)) for _ in range(2))

    @property
    def waiting(self) -> int:
        """Requests that no batch has taken."""
        return int(self.count.sum())

    def advance(self, arrivals: Arrivals, end: float) -> Answers:
        """Go on to `end` (seconds), with these arrivals before it.

        A request counts as answered in the step in which its batch begins, whenever that ends.
        """
        place = np.searchsorted(arrivals.pod, np.arange(self.size + 1))
        self._make_room(int(np.diff(place).max(initial=0)))
        following, last = place[:-1].copy(), place[1:]
        at = np.append(arrivals.at, inf)
        active = np.flatnonzero((following < last) | (self.count > 0))
        batches: list[tuple[Ints, Ints, Ints, Floats]] = []
        refused = 0
        while len(active):
            coming = np.where(following[active] < last[active], at[following[active]], inf)
            begins = (self.count[active] > 0) & (self.free[active] <= coming) & (self.free[active] < end)
            comes = ~begins & (coming < inf)
            if begins.any():
                batches.append(self._begin(active[begins]))
            arriving = active[comes]
            refused += self._arrive(arriving, at[following[arriving]], arrivals.work[following[arriving]])
            following[arriving] += 1
            active = active[begins | comes]
        return self._answers(batches, refused)

    def lose(self, pods: Ints) -> int:
        """Forget what waits at pods that are gone; return how many requests that were."""
        lost = int(self.count[pods].sum())
        self.count[pods] = 0
        self._queued[pods] = 0.0
        return lost

    def _begin(self, pods: Ints) -> tuple[Ints, Ints, Ints, Floats]:
        """Begin a batch at each; return pod, place of its first request in the ring, size, and its end."""
        size = np.minimum(self.count[pods], self.service.most)
        first = self._head[pods]
        work = np.zeros(len(pods))
        for number in range(int(size.max())):
            inside = number < size
            work[inside] += self._work[pods[inside], (first[inside] + number) % self.room]
        self._queued[pods] -= work
        seconds = (self.service.fixed + work) * self.slow[pods]
        self.free[pods] += seconds
        self.busy[pods] += seconds
        self._head[pods] += size
        self.count[pods] -= size
        return pods, first, size, self.free[pods]

    def _arrive(self, pods: Ints, at: Floats, work: Floats) -> int:
        """Queue a request at each, unless it would be late; return how many were refused."""
        idle = (self.count[pods] == 0) & (self.free[pods] <= at)
        taken = idle | self._in_time(pods, at, work)
        pods, at, work = pods[taken], at[taken], work[taken]
        place = (self._head[pods] + self.count[pods]) % self.room
        self._at[pods, place], self._work[pods, place] = at, work
        self.free[pods] = np.where(idle[taken], at, self.free[pods])
        self.count[pods] += 1
        self._queued[pods] += work
        return int((~taken).sum())

    def _in_time(self, pods: Ints, at: Floats, work: Floats) -> Any:
        """Predict as service/schedule.py does: what runs, what waits, the request itself, and some slack."""
        if self.service.deadline == inf or not self.service.admits:
            return np.ones(len(pods), bool)
        slack = FULL_BATCHES * self.service.most * self.service.each * self.slow[pods]
        ahead = np.maximum(self.free[pods] - at, 0.0) + (self._queued[pods] + work) * self.slow[pods]
        return MARGIN * ahead + slack <= self.service.deadline

    def _answers(self, batches: list[tuple[Ints, Ints, Ints, Floats]], refused: int) -> Answers:
        if not batches:
            return Answers(np.zeros(0), np.zeros(0), np.zeros(0, np.int64), refused)
        pod, first, size, end = (np.concatenate(column) for column in zip(*batches, strict=True))
        which = np.repeat(pod, size)
        number = np.arange(len(which)) - np.repeat(np.cumsum(size) - size, size)
        at = self._at[which, (np.repeat(first, size) + number) % self.room]
        return Answers(at, np.repeat(end, size) - at, which, refused)

    def _make_room(self, coming: int) -> None:
        """Let the rings hold what waits and what comes: nothing that a step answers may be overwritten in it."""
        need = coming + int(self.count.max(initial=0)) + 1
        if need <= self.room:
            return
        room = 1 << need.bit_length()
        places = self._head[:, None] + np.arange(self.room)
        for name in ("_at", "_work"):
            ring = np.zeros((self.size, room))
            old = np.take_along_axis(getattr(self, name), places % self.room, axis=1)
            np.put_along_axis(ring, places % room, old, axis=1)
            setattr(self, name, ring)
        self.room = room
