"""Deadline and lane are read from headers, and a wrong one is named."""

from math import inf

import pytest

from service.call import LONGEST_TIMEOUT_MS, Call, Lane, current, read_call, working_for
from service.errors import InvalidRequestError


def test_headers_say_by_when_and_how_urgent() -> None:
    assert read_call({}, 2000, 10.0) == Call(12.0, Lane.INTERACTIVE)
    given = read_call({"x-request-timeout-ms": "250", "x-priority": "batch"}, 2000, 10.0)
    assert given == Call(10.25, Lane.BATCH)


def test_a_call_is_current_inside_its_block_and_outside_there_is_no_deadline() -> None:
    call = Call(3.0, Lane.BATCH)
    with pytest.raises(KeyError), working_for(call):
        assert current() is call
        raise KeyError
    assert current() == Call(inf, Lane.INTERACTIVE)


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "1.5", "1e3", " 5", "٣", str(LONGEST_TIMEOUT_MS + 1), "9" * 5000, "soon"]
)
def test_a_wrong_timeout_is_named_with_its_limit(text: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"X-Request-Timeout-Ms .* 1 to {LONGEST_TIMEOUT_MS}") as raised:
        read_call({"x-request-timeout-ms": text}, 1, 0.0)
    assert raised.value.fields[0].limit == str(LONGEST_TIMEOUT_MS)


def test_a_wrong_lane_is_named_with_the_known_ones() -> None:
    with pytest.raises(InvalidRequestError, match="X-Priority must be one of interactive, batch"):
        read_call({"x-priority": "urgent"}, 1, 0.0)
