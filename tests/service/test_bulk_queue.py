"""The queue that serves in batches: the closed forms that it must give where there are some, and its own limits."""

from fractions import Fraction
from math import exp, factorial, floor

import pytest

from service.bulk_queue import Server, response_times


@pytest.mark.parametrize("busy", [0.1, 0.5, 0.8, 0.95])
def test_without_batches_the_mean_is_pollaczek_and_khinchine(busy: float) -> None:
    """M/D/1, and M/G/1 with a log-normal service time: E = s + rate * E[S^2] / (2 * (1 - busy))."""
    for variance in (0.0, 0.25, 1.0):
        times = response_times(Server(0.0, 1.0, 1, variance), busy)
        assert times is not None
        assert times.mean == pytest.approx(1 + busy * (1 + variance) / (2 * (1 - busy)), rel=0.01)
        assert times.batch == pytest.approx(1)


def test_the_quantiles_of_m_d_1_are_erlangs() -> None:
    """Erlang, The theory of probabilities and telephone conversations (1909)."""
    times = response_times(Server(0.0, 1.0, 1), 0.8)
    assert times is not None
    assert times.quantile(0.5) == pytest.approx(1 + erlang(0.8, 0.5), rel=0.02)
    assert times.quantile(0.99) == pytest.approx(1 + erlang(0.8, 0.99), rel=0.02)


def erlang(rate: float, share: float) -> float:
    """Invert P(wait <= t) = (1 - r) sum_k (r (k - t))^k / k! exp(-r (k - t)), k up to t, by halving."""

    def below(t: float) -> float:
        # In fractions: the terms alternate and cancel.
        terms = ((Fraction(rate) * (Fraction(k) - Fraction(t)), k) for k in range(floor(t) + 1))
        return float(sum(x**k / factorial(k) * Fraction(exp(-x)) for x, k in terms)) * (1 - rate)

    low, high = 0.0, 15.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < share else (low, middle)
    return low


@pytest.mark.parametrize("rate", [0.2, 1.0, 5.0])
def test_batches_that_take_the_same_time_whatever_is_in_them(rate: float) -> None:
    """A batch of 1 s ends with nobody waiting with probability e^-rate; then the next request goes alone.

    Of each e^-rate + rate requests the former take 1 s, the others the rest of a batch and their own: 1 to 2 s, evenly.
    """
    times = response_times(Server(1.0, 1e-9, 100), rate)
    assert times is not None
    alone = exp(-rate) / (exp(-rate) + rate)
    assert times.mean == pytest.approx(alone + 1.5 * (1 - alone), rel=1e-3)
    for share in (0.5, 0.99):
        assert times.quantile(share) == pytest.approx(1 + max(0.0, share - alone) / (1 - alone), abs=0.07)


def test_batches_grow_with_the_load_and_end_at_the_limit() -> None:
    server = Server(1.0, 0.1, 8)
    assert server.capacity == pytest.approx(8 / 1.8)
    sizes = [times.batch for busy in (0.05, 0.4, 0.9) if (times := response_times(server, busy * server.capacity))]
    assert sizes == sorted(sizes)
    assert sizes[0] < 1.1 and 5 < sizes[2] < 8


def test_more_than_it_can_serve_has_no_times() -> None:
    server = Server(0.5, 1.0, 4)
    assert response_times(server, 0.99 * server.capacity) is None
    assert response_times(server, 2 * server.capacity) is None
    assert response_times(server, 0.9 * server.capacity) is not None


def test_a_server_that_is_never_busy_takes_what_a_batch_of_one_takes() -> None:
    times = response_times(Server(0.5, 1.0, 4), 1e-6)
    assert times is not None
    assert (times.quantile(0.5), times.quantile(0.99)) == pytest.approx((1.5, 1.5), rel=0.01)
