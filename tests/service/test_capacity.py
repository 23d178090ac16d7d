"""`sparselane plan`: what follows from a curve, what bounds it, what is said of wrong values; measured once."""

import json
from pathlib import Path
from typing import Any

import pytest

from service import capacity
from service.bulk_queue import response_times
from service.capacity import Demand, Plan, checked_demand, pod, text_lengths
from service.curve import Curve, EngineSeconds, read_curve
from service.errors import StartupError
from service.measuring import LEAST_SECONDS
from tests.service import artifacts
from tests.service.artifacts import CLS
from tests.service.test_cli import run

CURVE = Curve(
    model="qa",
    window=384,
    max_batch_tokens=1024,
    engine={
        1: EngineSeconds(per_call=4e-4, per_token=2e-5, per_square=2e-8),
        2: EngineSeconds(per_call=4e-4, per_token=1.2e-5, per_square=1.1e-8),
    },
    per_request=8e-4,
    per_request_token=4e-6,
    resident_bytes=130_000_000,
)


def demand(**changes: Any) -> Demand:
    return Demand(**{"qps": 2000.0, "tokens": 128.0, "p99_ms": 50.0, "cores": 1, **changes})


def plan(**changes: Any) -> Plan:
    return capacity.plan(demand(**changes), CURVE)


def test_the_seconds_of_a_pod_are_those_of_the_curve() -> None:
    one = pod(demand(), CURVE)
    work = 128 * (2e-5 + 128 * 2e-8)
    assert one.front == pytest.approx(8e-4 + 128 * 4e-6)
    assert one.server.each == pytest.approx(work + one.front)
    assert (one.server.fixed, one.server.most, one.server.variance) == (4e-4, 8, pytest.approx(0))
    assert one.capacity == pytest.approx(8 / (4e-4 + 8 * one.server.each))
    two = pod(demand(cores=2), CURVE)
    assert two.server.each == pytest.approx(128 * (1.2e-5 + 128 * 1.1e-8) + one.front / 2)
    assert two.apart == pytest.approx(one.front / 2)


def test_long_texts_are_read_in_windows_and_in_several_calls() -> None:
    seconds = CURVE.engine[1]
    assert seconds.sequences(1000, 384) == pytest.approx(2 * seconds.sequences(384, 384) + seconds.sequences(232, 384))
    one = pod(demand(tokens=3000.0), CURVE)
    assert one.server.each == pytest.approx(2 * 4e-4 + seconds.sequences(3000, 384) + one.front)
    assert one.server.most == 1


def test_the_plan_is_the_fewest_pods_in_time_and_the_spare_ones() -> None:
    found = plan(spare=3)
    one = pod(demand(), CURVE)
    assert found.pods.pods == found.needed.pods + 3
    assert found.needed.p99 <= 0.05
    fewer = one.load(2000.0, found.needed.pods - 1)
    assert fewer is None or fewer.p99 > 0.05
    assert found.pods.p99 < found.needed.p99
    assert found.needed.utilization == pytest.approx(2000 / found.needed.pods / found.capacity)
    assert found.cores == found.pods.pods
    assert found.needed.utilization < found.needed.cpu < 1.2 * found.needed.utilization
    assert "the p99" in found.bound


@pytest.mark.parametrize(
    ("changes", "bound"),
    [
        ({"qps": 1.0}, "nothing"),
        ({"p99_ms": 20_000.0}, "throughput"),
        ({"p99_ms": 7.0}, "close to what a request alone takes"),
        ({"tokens": 8.0, "cores": 2, "p99_ms": 20_000.0, "qps": 1e5}, "the one thread"),
    ],
)
def test_what_bounds_it(changes: dict[str, Any], bound: str) -> None:
    fast = CURVE.engine | {2: EngineSeconds(per_call=1e-4, per_token=1e-6)}
    curve = CURVE.model_copy(update={"engine": fast}) if "cores" in changes else CURVE
    assert bound in capacity.plan(demand(**changes), curve).bound


def test_more_load_longer_texts_and_shorter_limits_take_more_pods() -> None:
    base = plan().needed.pods
    assert base < plan(qps=4000.0).needed.pods <= 2 * base
    assert base < plan(tokens=200.0).needed.pods
    assert base < plan(tokens_p99=384.0).needed.pods
    assert base < plan(p99_ms=12.0).needed.pods
    assert plan(p99_ms=500.0).needed.pods < base


def test_memory_and_cost_add_up() -> None:
    found = plan(core_hour_price=0.04, gb_hour_price=0.005)
    assert found.memory_bytes == 256 * 2**20
    hourly = found.pods.pods * (0.04 + 0.005 * 256 * 2**20 / 1e9)
    assert found.cost_an_hour == pytest.approx(hourly)
    assert plan().cost_an_hour is None


def test_lengths_have_the_mean_and_the_p99_that_were_asked_for() -> None:
    lengths = text_lengths(128, 400)
    assert sum(lengths) / len(lengths) == pytest.approx(128)
    assert lengths == sorted(lengths)
    assert 330 < lengths[-1] < 450  # the middle of the last fortieth
    assert text_lengths(128, None) == text_lengths(128, 128) == [128]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"p99_ms": 3.0}, "--p99-ms is 3, but a request that meets no other takes 4.6 ms with --cores 1"),
        ({"qps": 9e7}, "more than 100000 pods"),
    ],
)
def test_what_no_number_of_pods_can_do_is_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StartupError, match=message):
        plan(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qps": 0}, "--qps is 0: input should be greater than 0"),
        ({"cores": 0}, "--cores is 0: input should be greater than or equal to 1"),
        ({"p99_ms": float("nan")}, "--p99-ms is nan"),
        ({"tokens_p99": 100.0}, "--tokens-p99 is 100, with --tokens 128 it must be between that and 19"),
        ({"tokens_p99": 4000.0}, "--tokens-p99 is 4000"),
        ({"core_hour_price": -1.0}, "--core-hour-price is -1"),
    ],
)
def test_wrong_values_are_named_with_their_limits(changes: dict[str, Any], message: str) -> None:
    values = {"qps": 1.0, "tokens": 128.0, "p99_ms": 50.0, "cores": 1, **changes}
    with pytest.raises(StartupError, match=message):
        checked_demand(**values)


def test_threads_that_were_not_measured_follow_amdahls_law() -> None:
    four = CURVE.engine_with(4)
    # 2e-5 with one thread and 1.2e-5 with two: 4e-6 that nobody shares, 1.6e-5 shared.
    assert four.per_token == pytest.approx(4e-6 + 1.6e-5 / 4)
    assert four.per_call == pytest.approx(4e-4)
    alone = CURVE.model_copy(update={"engine": {1: CURVE.engine[1]}})
    with pytest.raises(StartupError, match="--cores is 4, the curve has threads 1"):
        alone.engine_with(4)


def test_a_curve_is_read_alone_or_from_a_plan_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "curve.json"
    for text in (CURVE.model_dump_json(), json.dumps(capacity.as_json(plan()))):
        path.write_text(text)
        assert read_curve(path) == CURVE
    values = CURVE.model_dump(mode="json")
    for change, message in (
        ({"window": 1}, "window: Input should be greater"),
        ({"engine": {}}, "engine: "),
        ({"engine": {"0": {"per_call": 0, "per_token": 1e-5}}}, "engine.0"),
        ({"windw": 1}, "windw: Extra inputs"),
    ):
        path.write_text(json.dumps(values | change))
        with pytest.raises(StartupError, match=message):
            read_curve(path)
    for text, message in (("[1]", "is no curve: Input should be"), ("{", "is no JSON")):
        path.write_text(text)
        with pytest.raises(StartupError, match=message):
            read_curve(path)
    with pytest.raises(StartupError, match="cannot be read"):
        read_curve(tmp_path / "nothing.json")


ASKED = ("plan", "--qps", 50, "--tokens", 40, "--p99-ms", 500, "--cores", 1)


def test_the_command_measures_and_plans_and_the_curve_can_be_used_again(tmp_path: Path) -> None:
    """The real server of a random model answers under load; what it cost is a curve."""
    artifacts.write(tmp_path / "models", CLS)
    code, out, error = run(*ASKED, "--models-dir", tmp_path / "models", "--model", "sentiment", "--json")
    assert code == 0, error
    found, path = json.loads(out), tmp_path / "plan.json"
    path.write_text(out)
    curve = read_curve(path)
    assert (curve.model, list(curve.engine), curve.max_batch_tokens) == ("sentiment", [1], 1024)
    # A request through HTTP and JSON takes more than 0.1 ms and less than 50 on any machine that can run tests. What
    # could not be measured would be LEAST_SECONDS.
    assert 2 * LEAST_SECONDS < curve.per_request < 0.05 and curve.per_request_token < 1e-3
    assert 50e6 < curve.resident_bytes < 1e9
    assert found["pods"]["pods"] == found["needed"]["pods"] + 1
    assert found["rollout_pods"] == found["pods"]["pods"] + 1
    code, again, _ = run(*ASKED, "--curve", path, "--json")
    assert (code, json.loads(again)) == (0, found)


def test_the_command_shows_a_table_and_errors_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "curve.json"
    path.write_text(CURVE.model_dump_json())
    code, out, _ = run(*ASKED, "--curve", path, "--core-hour-price", 0.04, "--spare", 2)
    assert code == 0
    for part in (
        "qa: 50 requests/s of 40 tokens",
        "2 lost",
        "CPUs",
        "a pod can serve",
        "an hour",
        "Bounded by nothing",
    ):
        assert part in out, out
    for wrong, message in ((("--cores", 0), "--cores is 0"), (("--curve", tmp_path / "x"), "cannot be read")):
        code, _, error = run(*ASKED, "--curve", path, *wrong)
        assert (code, message in error) == (2, True)
    code, _, error = run(*ASKED, "--model", "nothing")
    assert (code, "neither an artifact's folder nor a model" in error) == (2, True)


def test_quantiles_of_a_front_with_cpus_to_spare_grow_with_its_load() -> None:
    one = pod(demand(cores=2), CURVE)
    rate = 0.7 * one.capacity
    load, times = one.load(rate, 1), response_times(one.server, rate)
    assert load is not None and times is not None
    assert load.p99 > times.quantile(0.99) + one.apart
    assert load.p50 >= times.quantile(0.5) + one.apart
