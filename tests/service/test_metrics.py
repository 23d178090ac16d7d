"""Metrics that Prometheus' own linter accepts, with label sets that come and go with the models."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from service.metrics import OUTCOMES, STAGES, Metrics
from service.models import Model, Models
from service.pipeline import TASKS
from tests.service import fake

# What dashboards and alerts of an operator build on: none may vanish unnoticed.
NAMES = {
    *("requests_total", "request_duration_seconds", "queue_wait_seconds", "tokenize_duration_seconds"),
    *("inference_duration_seconds", "postprocess_duration_seconds", "batch_size", "batch_tokens", "input_tokens"),
    *("windows_per_request", "truncated_inputs_total", "queue_depth", "queue_tokens", "inflight_requests"),
    *("admission_limit_tokens", "predicted_wait_seconds", "model_ready", "model_info", "model_load_seconds"),
    *("cpu_quota_cores", "intra_op_threads", "build_info", "ready", "event_loop_lag_seconds", "model_loads_total"),
}


@pytest.fixture
def models(tmp_path: Path) -> list[Model]:
    return [fake.model(tmp_path, task)[0] for task in TASKS]


@pytest.fixture
def metrics(models: list[Model]) -> Metrics:
    return Metrics(Models({model.name: model for model in models}, {"broken": "x"}), TASKS, 1000, "1.2.3")


def lines(metrics: Metrics) -> list[str]:
    return metrics.page().decode().splitlines()


def test_promtool_finds_nothing_to_say(metrics: Metrics, models: list[Model]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus): the metrics are not linted")
    for model in models:
        for outcome in OUTCOMES:
            metrics.ended(model.task, model.name, outcome, 0.1)
        metrics.answered(model.task, model.name, dict.fromkeys(STAGES, 0.1), 20, 2)
    metrics.batch([3, 8, 17])
    done = subprocess.run([promtool, "check", "metrics"], input=metrics.page(), capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_every_name_is_there_from_the_start(metrics: Metrics) -> None:
    shown = {line.split()[2] for line in lines(metrics) if line.startswith("# TYPE sparselane_")}
    assert {f"sparselane_{name}" for name in NAMES} <= shown
    assert "sparselane_admission_limit_tokens 1000.0" in lines(metrics)
    assert 'sparselane_build_info{version="1.2.3"} 1.0' in lines(metrics)
    assert 'sparselane_model_ready{model="broken"} 0.0' in lines(metrics)
    assert 'sparselane_model_loads_total{model="broken",outcome="failed"} 0.0' in lines(metrics)


def test_padding_is_to_whole_lanes(metrics: Metrics) -> None:
    metrics.batch([3, 8, 17])
    assert 'sparselane_batch_tokens_sum{kind="real"} 28.0' in lines(metrics)
    assert 'sparselane_batch_tokens_sum{kind="padded"} 40.0' in lines(metrics)


def test_a_model_brings_its_label_sets_and_takes_them_with_it(metrics: Metrics, models: list[Model]) -> None:
    before = {line.rpartition(" ")[0] for line in lines(metrics)}
    new = replace(models[0], name="new", details={"sha256": "abc", "threads": "3"}, load_seconds=1.5)
    metrics.add_model(new)
    added = {line.rpartition(" ")[0] for line in lines(metrics)} - before
    assert f'sparselane_requests_total{{model="new",outcome="ok",task="{new.task}"}}' in added
    assert 'sparselane_model_load_seconds{model="new"} 1.5' in lines(metrics)
    assert "sparselane_intra_op_threads 3.0" in lines(metrics)
    assert all('model="new"' in line for line in added)
    metrics.remove_model("new")
    assert {line.rpartition(" ")[0] for line in lines(metrics)} == before


def test_a_model_that_comes_again_is_counted_anew(metrics: Metrics, models: list[Model]) -> None:
    model = models[0]
    name = f'sparselane_input_tokens_sum{{model="{model.name}",task="{model.task}"}} '
    for tokens in (5, 7):
        metrics.answered(model.task, model.name, dict.fromkeys(STAGES, 0.1), tokens, 1)
        assert f"{name}{tokens}.0" in lines(metrics)
        metrics.remove_model(model.name)
        assert not [line for line in lines(metrics) if line.startswith(name)]
        metrics.add_model(model)


def test_a_model_that_is_loaded_again_keeps_its_counts_and_changes_its_checksum(
    metrics: Metrics, models: list[Model]
) -> None:
    model = models[0]
    metrics.ended(model.task, model.name, "ok", 0.1)
    metrics.add_model(replace(model, details={"sha256": "new"}))
    infos = [line for line in lines(metrics) if line.startswith(f'sparselane_model_info{{model="{model.name}"')]
    assert len(infos) == 1 and 'sha256="new"' in infos[0]
    assert f'sparselane_requests_total{{model="{model.name}",outcome="ok",task="{model.task}"}} 1.0' in lines(metrics)
