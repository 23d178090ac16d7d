"""Promises are kept, nobody starves, short requests do not wait for long ones: on a clock of numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.call import Lane
from service.cost import Cost
from service.errors import OverloadedError
from service.models import Model
from service.schedule import BATCH_SHARE, HOPELESS, INTERACTIVE_BATCHES, LEAST_MARGIN, Job, Schedule
from service.windows import Window
from tests.service import fake

BATCH_TOKENS = 100
# Seconds per token in these stories: a full batch takes a second.
SECOND = 1 / BATCH_TOKENS
ADMITTED_ALL = inf
# The share of the batch lane comes in whole batches, one of which may be half a batch early.
A_LITTLE = 0.5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    made, _ = fake.model(tmp_path_factory.mktemp("model"), "token-classification")
    return made


def window(tokens: int) -> Window:
    return Window(np.zeros(tokens, np.int32), np.zeros(tokens, np.int32), 1, 0, tokens - 2)


@dataclass(frozen=True)
class Arrival:
    """A request that comes at `at` and may take `allowed` seconds."""

    at: float
    lengths: Sequence[int]
    allowed: float = ADMITTED_ALL
    lane: Lane = Lane.INTERACTIVE
    model: int = 0


@dataclass
class Story:
    """What became of arrivals at an engine that takes exactly as long as predicted, times `slower`."""

    models: list[Model]
    slower: float = 1.0
    refused: list[Arrival] = field(default_factory=list)
    finished: dict[int, float] = field(default_factory=dict)
    batches: list[list[int]] = field(default_factory=list)

    def tell(self, arrivals: Sequence[Arrival]) -> "Story":
        schedule: Schedule[Job] = Schedule(BATCH_TOKENS)
        coming, now, numbers = sorted(arrivals, key=lambda arrival: arrival.at), 0.0, {}
        while coming or len(schedule):
            now = max(now, coming[0].at) if not len(schedule) and coming else now
            self.let_in(schedule, coming, now, numbers)
            batch = schedule.next_batch(now)
            if not batch:
                continue
            assert sum(len(part.ids) for _, part in batch) <= BATCH_TOKENS or len(batch) == 1
            assert len({id(job.model) for job, _ in batch}) == 1
            cost = batch[0][0].cost
            seconds = self.slower * cost.scale * cost.call(cost.window(len(part.ids)) for _, part in batch)
            # Requests that come while the engine works are admitted or refused then, not after.
            self.let_in(schedule, coming, now + seconds, numbers)
            now += seconds
            schedule.done(batch, seconds)
            self.batches.append([numbers[job] for job, _ in batch])
            for job, _ in batch:
                if job.taken == len(job.windows):
                    self.finished[numbers[job]] = now
        return self

    def let_in(self, schedule: Schedule[Job], coming: list[Arrival], until: float, numbers: dict[Job, int]) -> None:
        while coming and coming[0].at <= until:
            arrival = coming.pop(0)
            windows = [window(length) for length in arrival.lengths]
            lane = schedule.lane(sum(arrival.lengths), arrival.lane)
            job = Job(self.models[arrival.model], windows, arrival.at, arrival.at + arrival.allowed, lane)
            numbers[job] = len(numbers)
            try:
                schedule.admit(job, arrival.at)
            except OverloadedError as error:
                assert error.retry_after is not None and 1 <= error.retry_after <= 60
                self.refused.append(arrival)


def with_cost(model: Model, per_token: float = SECOND) -> Model:
    return replace(model, cost=Cost(0.0, per_token, 0.0))


def test_short_requests_overtake_a_long_one_but_not_for_ever(model: Model) -> None:
    long = Arrival(0.1, [50] * 6)  # 3 s, so its rank is 12.1
    before, after = (
        [Arrival(0.1 * number, [10]) for number in numbers] for numbers in (range(2, 100), range(121, 160))
    )
    story = Story([with_cost(model)]).tell([Arrival(0, [100]), long, *before, *after])
    long_done = story.finished[1]
    assert all(story.finished[number] < long_done for number in range(2, 100))
    assert story.finished[max(story.finished)] > long_done


def test_without_others_a_batch_takes_as_many_windows_as_fit(model: Model) -> None:
    story = Story([with_cost(model)]).tell([Arrival(0, [60, 60]), Arrival(0, [30]), Arrival(1, [100])])
    assert story.batches == [[1, 0], [0], [2]]


def test_one_model_per_batch(model: Model) -> None:
    models = [with_cost(model), with_cost(model)]
    story = Story(models).tell([Arrival(0, [30], model=number % 2) for number in range(6)])
    assert story.batches == [[0, 2, 4], [1, 3, 5]]


lengths = st.lists(st.integers(3, BATCH_TOKENS), min_size=1, max_size=8)
arrivals = st.lists(
    st.builds(
        Arrival,
        at=st.integers(0, 40).map(lambda quarter: quarter / 4),
        lengths=lengths,
        allowed=st.integers(1, 60).map(lambda fifth: fifth / 5) | st.just(ADMITTED_ALL),
        lane=st.sampled_from([Lane.INTERACTIVE] * 4 + [Lane.BATCH]),
    ),
    min_size=10,
    max_size=60,
)


@settings(deadline=None, max_examples=100)
@given(arrivals)
def test_what_is_admitted_is_answered_in_time_and_the_rest_is_refused(model: Model, asked: list[Arrival]) -> None:
    """With exact predictions, and for those that allow two batches more than they need: an idle engine tries all.

    The batch lane is promised a share, not a time: what the interactive lane will want is not known.
    """
    story = Story([with_cost(model)]).tell(asked)
    ordered = sorted(asked, key=lambda arrival: arrival.at)
    assert len(story.finished) + len(story.refused) == len(asked)
    for number, done in story.finished.items():
        arrival, tokens = ordered[number], sum(ordered[number].lengths)
        large = tokens > INTERACTIVE_BATCHES * BATCH_TOKENS
        if arrival.lane is Lane.INTERACTIVE and not large and tokens * SECOND + 2 < arrival.allowed:
            assert done <= arrival.at + arrival.allowed + A_LITTLE


@settings(deadline=None, max_examples=100)
@given(arrivals)
def test_nobody_starves_and_the_engine_never_rests(model: Model, asked: list[Arrival]) -> None:
    """Without deadlines everything is answered, in the time that the work takes: the order never wastes any."""
    story = Story([with_cost(model)]).tell([replace(arrival, allowed=ADMITTED_ALL) for arrival in asked])
    assert not story.refused
    assert len(story.finished) == len(asked)
    work = sum(sum(arrival.lengths) for arrival in asked) * SECOND
    assert max(story.finished.values()) <= max(arrival.at for arrival in asked) + work + 1e-6


def test_the_batch_lane_gets_its_share_of_a_busy_engine_and_no_more(model: Model) -> None:
    offered = [Arrival(0.5 * number, [100]) for number in range(100)]  # twice what the engine can do
    work = [Arrival(0, [50] * 40, lane=Lane.BATCH)]  # 20 s of its own
    story = Story([with_cost(model)]).tell([*offered, *work])
    during = story.batches[:80]
    assert sum(1 in batch for batch in during) == pytest.approx(BATCH_SHARE * len(during), abs=2)


def test_the_batch_lane_has_its_share_beside_clients_that_empty_their_line_each_time(model: Model) -> None:
    """Two clients that ask again as soon as they are answered: every call takes all of their lane."""
    schedule: Schedule[Job] = Schedule(BATCH_TOKENS)
    one = with_cost(model)
    job = Job(one, [window(50) for _ in range(200)], 0.0, ADMITTED_ALL, Lane.BATCH)
    schedule.admit(job, 0.0)
    now, calls = 0.0, 400
    for _ in range(calls):
        for _ in range(2):
            schedule.admit(Job(one, [window(20)], now, ADMITTED_ALL, Lane.INTERACTIVE), now)
        batch = schedule.next_batch(now)
        seconds = one.cost.scale * one.cost.call(one.cost.window(len(part.ids)) for _, part in batch)
        now += seconds
        schedule.done(batch, seconds)
        if job.taken == len(job.windows):
            break
    assert job.taken * 50 * SECOND == pytest.approx(BATCH_SHARE * now, rel=0.15)


def test_the_batch_lane_has_the_engine_while_nobody_else_wants_it(model: Model) -> None:
    story = Story([with_cost(model)]).tell([Arrival(0, [50] * 40, lane=Lane.BATCH), Arrival(5.5, [50])])
    assert story.finished[0] == pytest.approx(20.5)
    # It waits for the one batch that runs, and for nothing else of the lane.
    assert story.finished[1] == pytest.approx(6.5)


def test_a_large_request_goes_to_the_batch_lane_by_itself() -> None:
    schedule: Schedule[Job] = Schedule(BATCH_TOKENS)
    assert schedule.lane(INTERACTIVE_BATCHES * BATCH_TOKENS, Lane.INTERACTIVE) is Lane.INTERACTIVE
    assert schedule.lane(INTERACTIVE_BATCHES * BATCH_TOKENS + 1, Lane.INTERACTIVE) is Lane.BATCH
    assert schedule.lane(1, Lane.BATCH) is Lane.BATCH


def test_a_newcomer_that_would_make_another_late_is_refused(model: Model) -> None:
    schedule, cost = Schedule[Job](BATCH_TOKENS), with_cost(model)
    schedule.admit(Job(cost, [window(100)], 0.0), 0.0)
    schedule.next_batch(0.0)
    schedule.admit(Job(cost, [window(100)] * 2, 0.0, deadline=6.0), 0.0)
    schedule.admit(Job(cost, [window(50)], 0.0, deadline=9.0), 0.0)
    with pytest.raises(OverloadedError):
        schedule.admit(Job(cost, [window(60)], 0.0, deadline=9.0), 0.0)
    schedule.admit(Job(cost, [window(60)], 8.0, deadline=19.0), 0.0)  # behind it, so it harms nobody


def test_an_idle_engine_tries_what_seems_too_long_and_so_learns_that_it_is_not(model: Model) -> None:
    slow = with_cost(model, per_token=1.0)
    schedule: Schedule[Job] = Schedule(BATCH_TOKENS)
    for _ in range(60):
        schedule.admit(Job(slow, [window(50)], 0.0, deadline=2.0), 0.0)
        with pytest.raises(OverloadedError):
            schedule.admit(Job(slow, [window(50)], 0.0, deadline=2.0), 0.0)
        schedule.done(schedule.next_batch(0.0), 0.5)
    assert slow.cost.scale * slow.cost.window(50) == pytest.approx(0.5, rel=0.2)


def test_what_has_no_chance_is_named_where_another_waits(model: Model) -> None:
    schedule, cost = Schedule[Job](BATCH_TOKENS), with_cost(model)
    lost, other = Job(cost, [window(100)], 0.0, deadline=3.0), Job(cost, [window(100)], 1.0)
    schedule.admit(lost, 0.0)
    assert schedule.hopeless(2.9) is None, "nobody would gain"
    schedule.admit(other, 1.0)
    assert schedule.hopeless(3.0 - 1.0 / HOPELESS - 0.01) is None
    assert schedule.hopeless(3.0 - 1.0 / HOPELESS + 0.01) is lost
    assert schedule.remove(lost)
    assert not schedule.remove(lost)
    assert schedule.hopeless(9.0) is None
    assert schedule.next_batch(9.0)[0][0] is other


def test_texts_that_are_being_read_count_as_work_ahead(model: Model) -> None:
    schedule, cost = Schedule[Job](BATCH_TOKENS), with_cost(model)
    schedule.admit(Job(cost, [window(100)], 0.0), 0.0)
    schedule.next_batch(0.0)
    schedule.check(Lane.INTERACTIVE, 2.0, 0.0)
    schedule.reading(cost.cost, 3.0)
    with pytest.raises(OverloadedError):
        schedule.check(Lane.INTERACTIVE, 2.0, 0.0)
    assert schedule.retry_after(0.0) == 5  # 1 s runs; the batch lane can count on 9/10 of the engine for 3 s
    schedule.reading(cost.cost, -3.0)
    schedule.check(Lane.INTERACTIVE, 2.0, 0.0)
    assert schedule.wait(Lane.INTERACTIVE, 0.25) == pytest.approx(0.75)


def test_the_margin_follows_waits_that_were_longer_than_predicted_and_forgets(model: Model) -> None:
    schedule: Schedule[Job] = Schedule(BATCH_TOKENS)

    def margin() -> float:
        """How many times its prediction a wait of ten seconds is taken for."""
        return next(tenths / 100 for tenths in range(100, 600) if in_time(tenths / 10))

    def in_time(allowed: float) -> bool:
        try:
            schedule.check(Lane.INTERACTIVE, allowed, 0.0, 10.0)
        except OverloadedError:
            return False
        return True

    schedule.admit(Job(with_cost(model), [window(1)], 0.0), 0.0)  # so that it is not idle
    assert margin() == pytest.approx(LEAST_MARGIN, abs=0.02)
    job = Job(with_cost(model), [window(1)], 0.0)
    job.wait = 1.0
    for hundredth in range(1000):  # ten seconds in which all take three times as long
        job.arrived = hundredth / 100
        schedule.learn(job, job.arrived + 3.0)
    assert 2.5 < margin() < 3.3
    for second in range(100):
        job.arrived = 10.0 + second
        schedule.learn(job, job.arrived + 1.0)
    assert margin() == pytest.approx(LEAST_MARGIN, abs=0.02)
    job.wait = 0.01  # a prediction this short says nothing
    schedule.learn(job, job.arrived + 100.0)
    assert margin() == pytest.approx(LEAST_MARGIN, abs=0.02)
