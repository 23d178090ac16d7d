"""The limits of the machine: measured by a real compiler, and found for every instruction set by its own name."""

import pytest

from bench.ceilings import measure_ceilings, step_limit
from engine import _engine, supported_isas


@pytest.fixture(scope="module")
def ceilings() -> dict[str, float]:
    return measure_ceilings()


def test_limits_are_numbers_of_this_machine(ceilings: dict[str, float]) -> None:
    assert {"read 24 KiB", "read 256 MiB"} <= ceilings.keys()
    assert all(value > 1e8 for value in ceilings.values())


@pytest.mark.parametrize("isa", [isa for isa in supported_isas() if isa != "reference"])
def test_every_kernel_here_has_a_limit(ceilings: dict[str, float], isa: str) -> None:
    for name in _engine.formats_of(isa):
        limit = step_limit(ceilings, isa, name)
        assert limit is not None and limit > 1e9
    assert step_limit(ceilings, isa, "survivors") <= step_limit(ceilings, isa, "dense")  # type: ignore[operator]


def test_of_what_a_matrix_unit_does_only_survivors_are_products() -> None:
    assert step_limit({"int8 tdpbsud, tiles": 2e12}, "amx_int8", "masked", 0.1) == 2e11
    assert step_limit({}, "amx_int8", "masked") is None


def test_what_is_not_measured_has_none() -> None:
    assert step_limit({}, "avx2", "dense") is None
    assert step_limit({"int8 sdot, 128 bit": 3.0}, "neon", "survivors") == 3.0
