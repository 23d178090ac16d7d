"""What /metrics shows: requests, latency by stage, batches, the queue, the models."""

from collections.abc import Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from service.errors import HTTP
from service.models import Models

# Edges at the latencies that CPU BERT is promised at, and at four times each, which Apdex needs.
SECONDS: Final = (
    *(0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05),
    *(0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10),
)
STAGES: Final = ("queue", "tokenize", "infer", "post", "total")
OUTCOMES: Final = ("ok", *sorted({meaning.outcome for meaning in HTTP.values()}))
# The `model` of a request that was refused before it was known which model it meant.
NO_MODEL: Final = "none"


class Metrics:
    """The metrics of one server, in a registry of their own; every label set is there from the start, at 0."""

    def __init__(self, models: Models, tasks: Iterable[str]) -> None:
        """Make the label sets of all `tasks` and of the models that serve."""
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "sparselane_requests", "Requests answered or refused.", ("task", "model", "outcome"), registry=registry
        )
        self.stage_seconds = Histogram(
            "sparselane_request_stage_seconds",
            "Time of answered requests by stage; total is from first byte to answer, the others are its parts.",
            ("task", "model", "stage"),
            buckets=SECONDS,
            registry=registry,
        )
        powers = [float(2**n) for n in range(18)]
        self.batch_tokens = Histogram(
            "sparselane_batch_tokens", "Tokens in a batch.", buckets=powers[3:], registry=registry
        )
        self.batch_windows = Histogram(
            "sparselane_batch_windows", "Windows in a batch.", buckets=powers[:10], registry=registry
        )
        self.queue_tokens = Gauge("sparselane_queue_tokens", "Tokens admitted and not answered.", registry=registry)
        self.ready = Gauge("sparselane_ready", "1 while /readyz answers 200.", registry=registry)
        details = ("model", "task", "precision", "sparsity", "sha256")
        info = Gauge("sparselane_model_info", "1 for each model that serves.", details, registry=registry)
        serving = [(model.task, model.name) for model in models.serving.values()]
        for task, name in [*serving, *((task, NO_MODEL) for task in tasks)]:
            for outcome in OUTCOMES:
                self.requests.labels(task, name, outcome)
        for task, name in serving:
            for stage in STAGES:
                self.stage_seconds.labels(task, name, stage)
            info.labels(name, task, *(models.serving[name].details.get(detail, "") for detail in details[2:])).set(1)

    def page(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry)
