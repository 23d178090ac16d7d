"""The time outside of the engine is predicted from how many are there and how fast they leave."""

import asyncio
from contextlib import ExitStack
from functools import partial

import pytest

from service import front
from service.front import ALWAYS, AT_ONCE, Front


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(front, "perf_counter", lambda: now[0])
    return now


def test_it_recovers_in_bursts_shorter_than_a_window(clock: list[float]) -> None:
    one = Front()
    leave_apart(one, clock, 0.1, 200)
    for _ in range(1000):
        with one.here():
            clock[0] += 0.002
            one.answered()
        clock[0] += 0.05  # nobody there
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(one.here())
        assert one.seconds == pytest.approx(0.04, rel=0.1)


def leave_apart(one: Front, clock: list[float], seconds: float, count: int) -> None:
    """Let `count` requests leave, so far apart, while another is there."""
    with one.here():
        for _ in range(count):
            with one.here():
                clock[0] += seconds
                one.answered()


def test_the_prediction_follows_the_speed_at_which_requests_leave(clock: list[float]) -> None:
    one = Front()
    for seconds in (0.01, 0.002):
        leave_apart(one, clock, seconds, 1000)
        with ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(one.here())
            assert one.seconds == pytest.approx(20 * seconds, rel=0.1)


def test_bursts_are_averaged(clock: list[float]) -> None:
    one = Front()
    with one.here():
        for _ in range(200):
            clock[0] += 0.1
            for _ in range(10):
                with one.here():
                    one.answered()
        with ExitStack() as stack:
            for _ in range(19):
                stack.enter_context(one.here())
            assert one.seconds == pytest.approx(0.2, rel=0.1)


def test_time_without_requests_and_one_long_stop_count_little(clock: list[float]) -> None:
    one = Front()
    leave_apart(one, clock, 0.01, 400)
    clock[0] += 3600
    leave_apart(one, clock, 0.01, 400)
    leave_apart(one, clock, 60, 1)
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(one.here())
        assert one.seconds < 0.2 * (1 + 0.3 * 3) * 1.1


def test_those_that_are_late_and_leave_at_once_do_not_look_like_speed(clock: list[float]) -> None:
    one = Front()
    leave_apart(one, clock, 0.01, 400)
    with one.here():
        for _ in range(200):
            with pytest.raises(TimeoutError), one.here():
                raise TimeoutError
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(one.here())
        assert one.seconds == pytest.approx(0.2, rel=0.1)


def test_the_engines_time_is_not_counted(clock: list[float]) -> None:
    one = Front()
    for _ in range(50):
        with ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(one.here())
            with ExitStack() as waiting:
                for _ in range(20):
                    waiting.enter_context(one.elsewhere())
                clock[0] += 0.5
            clock[0] += 0.02
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(one.here())
        assert one.seconds < 0.03


@pytest.mark.usefixtures("clock")
def test_those_in_the_engine_are_not_counted_and_a_few_are_always_let_in() -> None:
    one = Front()
    with ExitStack() as stack:
        for _ in range(ALWAYS):
            assert one.seconds == 0
            stack.enter_context(one.here())
        assert one.seconds > 0
        with one.elsewhere():
            assert one.seconds == 0
        assert one.seconds > 0
    assert one.seconds == 0


def test_a_crowd_is_let_in_a_few_at_a_time_in_its_order() -> None:
    one = Front()
    begun: list[int] = []

    async def story() -> None:
        for number in range(AT_ONCE + 3):
            one.come(partial(begun.append, number), partial(begun.append, -1), 600)
        assert begun == list(range(AT_ONCE))
        assert one.seconds_at_the_door == pytest.approx(one.seconds * (AT_ONCE + 3) / AT_ONCE)
        assert one.at_the_door == AT_ONCE + 3
        with one.begun():
            assert len(begun) == AT_ONCE
            assert one.at_the_door == AT_ONCE + 2
            with one.elsewhere():
                assert begun == list(range(AT_ONCE + 1)), "its place is free while the engine has it"
            assert len(begun) == AT_ONCE + 1, "it comes back whoever is there"
        assert len(begun) == AT_ONCE + 1
        with one.begun():
            pass
        assert begun == list(range(AT_ONCE + 2))

    asyncio.run(story())


def test_who_waits_too_long_is_told_so_and_not_let_in() -> None:
    one = Front()
    seen: list[str] = []

    async def story() -> None:
        with ExitStack() as stack:
            for _ in range(AT_ONCE):
                stack.enter_context(one.here())
            late = asyncio.Event()
            one.come(partial(seen.append, "first"), partial(seen.append, "first is late"), 600)
            one.come(partial(seen.append, "second"), late.set, 0.01)
            one.come(partial(seen.append, "last"), partial(seen.append, "last is late"), 600)
            await asyncio.wait_for(late.wait(), 30)
            assert (seen, one.at_the_door) == ([], 2)
            timers = list(one._waiting.values())
        assert seen == ["first", "last"]
        assert [timer.cancelled() for timer in timers] == [True, True]

    asyncio.run(story())


def test_what_did_not_come_through_the_door_is_not_counted_when_it_leaves() -> None:
    one = Front()
    with one.elsewhere():
        pass
    with ExitStack() as stack:
        for _ in range(ALWAYS):
            stack.enter_context(one.here())
        assert one.seconds > 0
