"""What /metrics shows: requests, latency by stage, batches, the queue, the models, the CPU."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

from service.call import Lane
from service.cgroup import CpuCollector, MemoryCollector
from service.errors import HTTP, OverloadedError, meaning
from service.exposition import Exposition
from service.models import Model, Models

# Edges at the latencies that CPU BERT is promised at, and at four times each, which Apdex needs.
SECONDS: Final = (
    *(0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05),
    *(0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10),
)
POWERS: Final = [float(2**n) for n in range(18)]
TOTAL: Final = "total"
# The parts of a request's time by the names that `Server-Timing` gives them: the metric's name, and what it is.
STAGES: Final[Mapping[str, tuple[str, str]]] = {
    "queue": ("queue_wait", "Time that answered requests waited for the engine."),
    "tokenize": ("tokenize_duration", "Time in which the texts of answered requests were tokenized."),
    "infer": ("inference_duration", "Time that answered requests were in the engine, their first batch to their last."),
    "post": ("postprocess_duration", "Time in which answers were made from logits."),
    TOTAL: ("request_duration", "Time of answered requests, from their head to their answer."),
}
OUTCOMES: Final = ("ok", *sorted({meaning.outcome for meaning in HTTP.values()}))
MODEL: Final = ("task", "model")
INFO: Final = ("model", "task", "precision", "sparsity", "sha256")
# Task or model of a request that was refused before it was known what it asked.
NONE: Final = "none"
# The engine gives a sequence whole groups of this many lanes (docs/engine.md).
LANES: Final = 8


class Metrics:
    """The metrics of one server, in a registry of their own; every label set is there from the start, at 0."""

    def __init__(
        self, models: Models, tasks: Iterable[str], admission_limit_tokens: int = 0, version: str = ""
    ) -> None:
        """Make the label sets of all `tasks` and of the models that serve."""
        self.registry = CollectorRegistry()
        self._exposition = Exposition(self.registry)
        self._requests = self._counter("requests", "Requests to models, by how they ended.", (*MODEL, "outcome"))
        self.truncated_inputs = self._counter("truncated_inputs", "Inputs read in part: none is.", MODEL)
        self._stages = {
            stage: self._histogram(f"{name}_seconds", text, MODEL, SECONDS) for stage, (name, text) in STAGES.items()
        }
        self._input_tokens = self._histogram(
            "input_tokens", "Tokens that a request made the model read.", MODEL, POWERS
        )
        # The series of a task's answers by a model, which are dear to look up.
        self._series: dict[tuple[str, str], dict[str, Histogram]] = {}
        self._windows = self._histogram(
            "windows_per_request", "Windows that a request was cut into.", MODEL, POWERS[:12]
        )
        self._batch_size = self._histogram("batch_size", "Windows in a batch.", (), POWERS[:10])
        self._batch_tokens = self._histogram(
            "batch_tokens", "Tokens in a batch: those there are, and the lanes they fill.", ("kind",), POWERS[3:]
        )
        depth = self._gauge("queue_depth", "Requests that wait for the engine.", ("lane",))
        self.queue_depth = {lane: depth.labels(lane) for lane in Lane}
        self.queue_tokens = self._gauge("queue_tokens", "Tokens admitted and not answered.")
        self.predicted_wait = self._gauge(
            "predicted_wait_seconds", "How long a short request that comes now will wait."
        )
        self.inflight = self._gauge("inflight_requests", "Requests to models that came and have no answer yet.")
        self.loop_lag = self._histogram(
            "event_loop_lag_seconds", "How late the event loop came to a task that was due.", (), SECONDS
        )
        self.ready = self._gauge("ready", "1 while /readyz answers 200.")
        self.model_loads = self._counter(
            "model_loads", "Models loaded or refused since the start.", ("model", "outcome")
        )
        self.model_ready = self._gauge(
            "model_ready", "1 for each model that serves, 0 for one that failed.", ("model",)
        )
        self._model_info = self._gauge("model_info", "1 for each model that serves.", INFO)
        self._load_seconds = self._gauge("model_load_seconds", "How long a model took to load.", ("model",))
        self._threads = self._gauge("intra_op_threads", "Threads of one call of the engine.")
        limit = self._gauge("admission_limit_tokens", "Most tokens admitted and not answered.")
        limit.set(admission_limit_tokens)
        self._gauge("build_info", "1; which build this is.", ("version",)).labels(version).set(1)
        for collector in (CpuCollector, MemoryCollector, ProcessCollector, PlatformCollector):
            collector(registry=self.registry)
        for task in (*tasks, NONE):
            self._request_labels(task, NONE)
        for kind in ("real", "padded"):
            self._batch_tokens.labels(kind)
        for model in models.serving.values():
            self.add_model(model)
        for name in models.failures:
            self.add_failure(name)

    def add_model(self, model: Model) -> None:
        """Make the label sets of a model that serves from now on; one that is there keeps its counts."""
        self._forget_info(model.name)
        self._request_labels(model.task, model.name)
        self._load_labels(model.name)
        for metric in self._per_model():
            metric.labels(model.task, model.name)
        self._model_info.labels(model.name, model.task, *(model.details.get(name, "") for name in INFO[2:])).set(1)
        self.model_ready.labels(model.name).set(1)
        self._load_seconds.labels(model.name).set(model.load_seconds)
        self._threads.set(int(model.details.get("threads", 0)))

    def add_failure(self, name: str) -> None:
        """Show a model that does not serve."""
        self._load_labels(name)
        self.model_ready.labels(name).set(0)

    def remove_model(self, name: str) -> None:
        """Forget the label sets of a model that no longer serves."""
        self._series.clear()
        counted = (self._requests, self.model_loads, *self._per_model())
        for metric in (*counted, self._model_info, self.model_ready, self._load_seconds):
            metric.remove_by_labels({"model": name})

    def ended(self, task: str, model: str, outcome: str, seconds: float) -> None:
        """Count a request to a model, and its time where it was answered."""
        self._requests.labels(task, model, outcome).inc()
        if outcome == "ok":
            self._stages[TOTAL].labels(task, model).observe(seconds)

    def refused(self, task: str = NONE) -> Counter:
        """Return what counts the requests that are refused before it is known which model they ask."""
        return self._requests.labels(task, NONE, meaning(OverloadedError("")).outcome)

    def answered(self, task: str, model: str, stages: Mapping[str, float], tokens: int, windows: int) -> None:
        """Note where the time of an answer went, and what was read for it."""
        series = self._series.get((task, model))
        if series is None:
            named = {**self._stages, "tokens": self._input_tokens, "windows": self._windows}
            series = self._series[task, model] = {name: metric.labels(task, model) for name, metric in named.items()}
        for stage, seconds in stages.items():
            series[stage].observe(seconds)
        series["tokens"].observe(tokens)
        series["windows"].observe(windows)

    def batch(self, lengths: Sequence[int]) -> None:
        """Note a batch of sequences."""
        self._batch_size.observe(len(lengths))
        self._batch_tokens.labels("real").observe(sum(lengths))
        self._batch_tokens.labels("padded").observe(sum(-length % LANES + length for length in lengths))

    def page(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return self._exposition.page()

    def _per_model(self) -> tuple[Counter | Histogram, ...]:
        return (self.truncated_inputs, *self._stages.values(), self._input_tokens, self._windows)

    def _request_labels(self, task: str, model: str) -> None:
        for outcome in OUTCOMES:
            self._requests.labels(task, model, outcome)

    def _load_labels(self, model: str) -> None:
        for outcome in ("ok", "failed"):
            self.model_loads.labels(model, outcome)

    def _forget_info(self, name: str) -> None:
        """A model that is loaded again has another checksum: the old label set would say that both serve."""
        self._model_info.remove_by_labels({"model": name})

    def _counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(f"sparselane_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(f"sparselane_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, labels: Sequence[str], buckets: Sequence[float]) -> Histogram:
        return Histogram(f"sparselane_{name}", text, labels, buckets=buckets, registry=self.registry)
