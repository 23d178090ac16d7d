"""Deadline and lane are read from headers, and a wrong one is named."""

from collections.abc import Iterator
from math import inf

import pytest

from service import call
from service.call import LONGEST_TIMEOUT_MS, Call, Lane, begin, current
from service.errors import InvalidRequestError


@pytest.fixture(autouse=True)
def leaves_no_call_behind() -> Iterator[None]:
    """What `begin` makes current here would be the deadline of every later test in this thread."""
    before = call._current.set(None)
    yield
    call._current.reset(before)


def test_headers_say_by_when_and_how_urgent() -> None:
    assert begin({}, 2000, 10.0) == Call(12.0, Lane.INTERACTIVE)
    given = begin({"x-request-timeout-ms": "250", "x-priority": "batch"}, 2000, 10.0)
    assert given == Call(10.25, Lane.BATCH)
    assert current() is given


def test_outside_of_a_request_there_is_no_deadline() -> None:
    from contextvars import Context

    assert Context().run(current) == Call(inf, Lane.INTERACTIVE)


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "1.5", "1e3", " 5", "٣", str(LONGEST_TIMEOUT_MS + 1), "9" * 5000, "soon"]
)
def test_a_wrong_timeout_is_named_with_its_limit(text: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"X-Request-Timeout-Ms .* 1 to {LONGEST_TIMEOUT_MS}") as raised:
        begin({"x-request-timeout-ms": text}, 1, 0.0)
    assert raised.value.fields[0].limit == str(LONGEST_TIMEOUT_MS)


def test_a_wrong_lane_is_named_with_the_known_ones() -> None:
    with pytest.raises(InvalidRequestError, match="X-Priority must be one of interactive, batch"):
        begin({"x-priority": "urgent"}, 1, 0.0)
