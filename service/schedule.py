"""Who is next at the engine, and can a request still be answered in time? Arithmetic on a list; no clock, no threads.

Two lanes, each in one fixed order. A request's rank is its arrival plus `AGEING` times its own predicted seconds: short
ones overtake long ones that came a little earlier, and nothing that arrives after a rank has passed can overtake it. So
nobody starves, and the wait of a request is a sum over those in front of it, which a round robin would not give.

The batch lane gets what the interactive lane leaves, and `BATCH_SHARE` of the engine's time where that leaves nothing.
"""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil, exp, inf
from typing import Final, Generic, TypeVar

from service.call import Lane
from service.cost import Cost
from service.errors import OverloadedError
from service.models import Model
from service.windows import Window

# A request may be overtaken for this many times the seconds that it needs itself.
AGEING: Final = 4.0
BATCH_SHARE: Final = 1 / 8
# A request of more than this many full batches would hold up the interactive lane: it goes to the other one.
INTERACTIVE_BATCHES: Final = 4
# Admit only what would be in time if the wait were so much longer: predictions are means. The margin grows by a step
# where a wait was longer still, at most every so many seconds: one stop of the machine makes hundreds late. And it is
# forgotten, so that nothing is refused for what the machine was like a minute ago.
LEAST_MARGIN: Final = 1.25
MOST_MARGIN: Final = 4.0
MARGIN_STEP: Final = 0.1
MARGIN_STEP_SECONDS: Final = 0.1
MARGIN_SECONDS: Final = 10.0
# Shorter predictions tell nothing: a turn of the event loop is a large part of them.
TELLING_SECONDS: Final = 0.1
# Drop what would be late even if the engine were this much faster than predicted.
HOPELESS: Final = 2.0
# How long the share of the interactive lane is averaged over.
SHARE_SECONDS: Final = 10.0
# Weight of the newest call in the mean of the time between calls.
NEWEST: Final = 0.1
LONGEST_RETRY_SECONDS: Final = 60


@dataclass(eq=False)
class Job:
    """The windows of one request; `taken` of them are in a batch or done. `left`: base seconds of the others."""

    model: Model
    windows: Sequence[Window]
    arrived: float
    deadline: float = inf
    lane: Lane = Lane.INTERACTIVE
    taken: int = 0
    # What it had to wait for others when it was admitted, predicted.
    wait: float = 0.0
    rank: float = field(init=False)
    left: float = field(init=False)

    def __post_init__(self) -> None:
        """Predict."""
        self.left = sum(self.model.cost.window(len(window.ids)) for window in self.windows)
        self.rank = self.arrived + AGEING * self.seconds

    @property
    def cost(self) -> Cost:
        """The cost of its model."""
        return self.model.cost

    @property
    def seconds(self) -> float:
        """Seconds that the engine still needs for it, predicted."""
        return self.left * self.cost.scale

    @property
    def tokens(self) -> int:
        """Tokens that no batch has taken."""
        return sum(len(window.ids) for window in self.windows[self.taken :])


AnyJob = TypeVar("AnyJob", bound=Job)


def _rank(job: Job) -> float:
    return job.rank


class Line(Generic[AnyJob]):
    """The waiting jobs of one lane by rank, and the sum of their work."""

    def __init__(self) -> None:
        """Make it empty."""
        self.jobs: list[AnyJob] = []
        self._work: defaultdict[Cost, float] = defaultdict(float)

    @property
    def seconds(self) -> float:
        """Predicted seconds of all of them."""
        return sum(cost.scale * base for cost, base in self._work.items())

    def add(self, job: AnyJob) -> None:
        """Put a job where its rank belongs, behind its equals."""
        insort(self.jobs, job, key=_rank)
        self.work(job.cost, job.left)

    def remove(self, job: AnyJob) -> None:
        """Take a job out, and its work."""
        index = bisect_left(self.jobs, job.rank, key=_rank)
        while self.jobs[index] is not job:
            index += 1
        del self.jobs[index]
        self.work(job.cost, -job.left)

    def work(self, cost: Cost, base: float) -> None:
        """Change the sum by `base` seconds of the model that costs `cost`."""
        self._work[cost] += base
        if self._work[cost] < 1e-12:  # what rounding leaves of nothing; also forgets models that are unloaded
            del self._work[cost]

    def behind(self, rank: float) -> Iterator[AnyJob]:
        """Give the jobs that a newcomer of this rank would overtake, the last one first."""
        for job in reversed(self.jobs):
            if job.rank <= rank:
                return
            yield job


class Schedule(Generic[AnyJob]):
    """Both lanes, what runs, and the promises that were made: every job that is admitted should meet its deadline."""

    def __init__(self, max_batch_tokens: int) -> None:
        """Make it empty."""
        self._max_batch_tokens = max_batch_tokens
        self.lines: dict[Lane, Line[AnyJob]] = {lane: Line() for lane in Lane}
        # Texts that are being read now, at a guess: their windows will come.
        self._reading: Line[AnyJob] = Line()
        # When the batch that runs should be done; None: the engine is idle.
        self._ends_at: float | None = None
        # Engine seconds that the batch lane is owed; below 0: it had too much.
        self._owed = 0.0
        self._interactive = 0.0
        self._updated = -inf
        # Seconds between two calls of the engine that are not in it, averaged.
        self._between = 0.0
        self._margin = LEAST_MARGIN
        self._learned = self._raised = -inf

    def __len__(self) -> int:
        """Return the number of waiting jobs."""
        return sum(len(line.jobs) for line in self.lines.values())

    def lane(self, tokens: int, wanted: Lane) -> Lane:
        """Return the lane of a request: the one it wants, unless it is large."""
        return Lane.BATCH if tokens > INTERACTIVE_BATCHES * self._max_batch_tokens else wanted

    def wait(self, lane: Lane, now: float) -> float:
        """Return the seconds that a smallest request of the lane would wait for those in front of it, predicted."""
        return self._finish(lane, now, now) - now

    def retry_after(self, now: float) -> int:
        """Return the whole seconds after which what waits now should be done."""
        return _whole_seconds(max(self._finish(lane, inf, now) for lane in Lane) - now)

    def reading(self, cost: Cost, base: float) -> None:
        """Count `base` seconds of work that is being tokenized; negative: it is done."""
        self._reading.work(cost, base)

    def check(
        self, lane: Lane, deadline: float, now: float, own: float = 0.0, *, outside: float = 0.0, slack: float = 0.0
    ) -> float:
        """Return how long a request of `own` seconds will take, and `outside` the engine; 0: an idle engine will see.

        An idle engine tries everything: a prediction that is too high would keep away the work that corrects it. Raises
        OverloadedError where it cannot be in time.
        """
        idle = self._ends_at is None and not len(self)
        if idle and now + self._margin * outside <= deadline:
            return 0.0
        finish = outside + (now if idle else self._finish(lane, now + AGEING * own, now) + own / self._speed(lane))
        wait = self._margin * (finish - now) + self._between + slack
        if now + wait > deadline:
            raise _overloaded(wait, finish - deadline, deadline - now)
        return finish - now

    def admit(self, job: AnyJob, now: float, outside: float = 0.0) -> None:
        """Queue a job. Raises OverloadedError where it would be late, or would make a waiting one late."""
        slack = self._slack(job)
        job.wait = self.check(job.lane, job.deadline, now, job.seconds, outside=outside, slack=slack)
        line, own = self.lines[job.lane], job.seconds / self._speed(job.lane)
        finish = self._finish(job.lane, inf, now, reading=False)
        for other in line.behind(job.rank):
            if finish <= other.deadline < finish + own + slack:  # else it is late anyhow, or has time
                raise OverloadedError(
                    "this would make a request late that was accepted before: try again later",
                    retry_after=_whole_seconds(other.deadline - now),
                )
            finish -= other.seconds / self._speed(job.lane)
        if job.lane is Lane.BATCH and not line.jobs:  # nothing is owed to a lane that had nothing to do
            self._owed = min(self._owed, 0.0)
        line.add(job)

    def remove(self, job: AnyJob) -> bool:
        """Forget what no batch has taken of a job; False: nothing was left."""
        if job.taken == len(job.windows) or job not in self.lines[job.lane].jobs:
            return False
        self.lines[job.lane].remove(job)
        return True

    def hopeless(self, now: float) -> AnyJob | None:
        """Return the next job if it cannot be in time any more and another waits that perhaps can."""
        line = self._next_line()
        if line is None or len(self) < 2:
            return None
        job = line.jobs[0]
        return job if now + job.seconds / HOPELESS > job.deadline else None

    def next_batch(self, now: float) -> list[tuple[AnyJob, Window]]:
        """Take windows of the next job's model: as many as fit into a batch, at least one; none where nobody waits."""
        line = self._next_line()
        if line is None:
            return []
        batch, base = self._take(line)
        seconds = batch[0][0].cost.scale * base
        self._ends_at = now + seconds
        if line is self.lines[Lane.INTERACTIVE]:
            self._decay(now)
            self._interactive += seconds
            self._owed += seconds * BATCH_SHARE / (1 - BATCH_SHARE)
        elif self.lines[Lane.INTERACTIVE].jobs:
            self._owed -= seconds
        return batch

    def done(self, batch: Sequence[tuple[AnyJob, Window]], seconds: float, between: float = 0.0) -> None:
        """Learn that the engine ran `batch` in `seconds`, and that the way there and back took as long as `between`.

        Told apart, because small batches are mostly way: they would make every token look dear.
        """
        cost = batch[0][0].cost
        cost.observe(cost.call(cost.window(len(window.ids)) for _, window in batch), seconds)
        self._between += NEWEST * (between - self._between)
        self._ends_at = None

    def learn(self, job: Job, now: float) -> None:
        """Correct the margin by a job that is answered, or that nobody waits for any more."""
        if job.wait < TELLING_SECONDS:
            return
        self._margin = LEAST_MARGIN + (self._margin - LEAST_MARGIN) * exp(-(now - self._learned) / MARGIN_SECONDS)
        self._learned = now
        if now - job.arrived > self._margin * job.wait and now - self._raised > MARGIN_STEP_SECONDS:
            self._margin = min(self._margin + MARGIN_STEP, MOST_MARGIN)
            self._raised = now

    def _next_line(self) -> Line[AnyJob] | None:
        interactive, batch = self.lines[Lane.INTERACTIVE], self.lines[Lane.BATCH]
        if batch.jobs and (not interactive.jobs or self._owed >= min(batch.jobs[0].seconds, self._full(batch.jobs[0]))):
            return batch
        return interactive if interactive.jobs else None

    def _take(self, line: Line[AnyJob]) -> tuple[list[tuple[AnyJob, Window]], float]:
        batch: list[tuple[AnyJob, Window]] = []
        model, tokens, base = line.jobs[0].model, 0, 0.0
        for job in [job for job in line.jobs if job.model is model]:
            line.remove(job)
            while job.taken < len(job.windows):
                window = job.windows[job.taken]
                if batch and tokens + len(window.ids) > self._max_batch_tokens:
                    line.add(job)
                    return batch, job.cost.call([base])
                seconds = job.cost.window(len(window.ids))
                batch.append((job, window))
                tokens, base = tokens + len(window.ids), base + seconds
                job.taken, job.left = job.taken + 1, job.left - seconds
        return batch, model.cost.call([base])

    def _finish(self, lane: Lane, rank: float, now: float, *, reading: bool = True) -> float:
        """Predict when everything is done that a job of `lane` and `rank` has to wait for."""
        line = self.lines[lane]
        ahead = line.seconds - sum(job.seconds for job in line.behind(rank)) + (self._reading.seconds if reading else 0)
        start = max(now, self._ends_at or now)
        if lane is Lane.BATCH:
            self._decay(now)
            start += self.lines[Lane.INTERACTIVE].seconds
        return start + ahead / self._speed(lane)

    def _slack(self, job: Job) -> float:
        """Return the seconds of what may share a job's last batch, and of a batch of the other lane before it."""
        return 2 * self._full(job)

    def _full(self, job: Job) -> float:
        """Return the seconds of a full batch of the job's model."""
        return job.cost.scale * job.cost.per_token * self._max_batch_tokens

    def _speed(self, lane: Lane) -> float:
        """Return the share of the engine that a lane can count on."""
        if lane is Lane.INTERACTIVE:
            return 1 - BATCH_SHARE if self.lines[Lane.BATCH].jobs else 1.0
        return max(BATCH_SHARE, 1 - self._interactive / SHARE_SECONDS)

    def _decay(self, now: float) -> None:
        self._interactive *= exp(-(now - self._updated) / SHARE_SECONDS)
        self._updated = now


def _overloaded(wait: float, late: float, allowed: float) -> OverloadedError:
    """Say how long it would take; try again when as much is done as it would be late by."""
    return OverloadedError(
        f"this may need {wait:.1f} s, and has {max(0.0, allowed):.1f} s: try again later, "
        "or allow more with X-Request-Timeout-Ms",
        retry_after=_whole_seconds(late),
    )


def _whole_seconds(seconds: float) -> int:
    return max(1, min(LONGEST_RETRY_SECONDS, ceil(seconds)))
