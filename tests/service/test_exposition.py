"""Our page of metrics says what prometheus_client's own writer says, in Prometheus' text format."""

from math import inf, nan

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service import exposition
from service.exposition import Exposition
from service.metrics import Metrics
from service.models import Models
from service.pipeline import TASKS


def read(page: str) -> list[tuple[str, str, str, list[tuple[str, dict[str, str], float]]]]:
    return [
        (f.name, f.documentation, f.type, [(s.name, s.labels, s.value) for s in f.samples])
        for f in text_string_to_metric_families(page)
    ]


@pytest.fixture
def registry() -> CollectorRegistry:
    made = CollectorRegistry()
    counter = Counter("asked", 'with "quotes", a \\ and\na second line', ("who", "answer"), registry=made)
    for who in ("é", 'a "b"', "back\\slash", "two\nlines", ""):
        counter.labels(who, "yes").inc(2.5)
    for number, value in enumerate((inf, -inf, nan, 1e300, 1e-9, -0.0, 123456789.0)):
        Gauge(f"gauge_{number}", "A gauge.", registry=made).set(value)
    seconds = Histogram("took_seconds", "Time.", ("who",), buckets=(0.001, 2.5), registry=made)
    seconds.labels("a").observe(0.1)
    return made


def test_the_page_is_that_of_the_library(registry: CollectorRegistry) -> None:
    writer = Exposition(registry)
    for _ in range(2):  # the second time from memory
        page, usual = writer.page().decode(), generate_latest(registry).decode()
        series = [line.rpartition(" ")[0] for line in page.splitlines()]
        expected = [line.rpartition(" ")[0] for line in usual.splitlines() if "_created" not in line]
        assert series == expected
        theirs = [one for one in read(usual) if not one[0].endswith("_created")]
        assert repr(read(page)) == repr(theirs)  # as text: nan is not equal to itself


def test_the_servers_own_page_is_that_of_the_library() -> None:
    metrics = Metrics(Models({}, {"broken": "x"}), TASKS)
    ours, theirs = (read(page.decode()) for page in (metrics.page(), generate_latest(metrics.registry)))
    assert [(name, text, kind) for name, text, kind, _ in ours] == [
        (name, text, kind) for name, text, kind, _ in theirs if not name.endswith("_created")
    ]
    assert len(ours) > 30


def test_texts_are_kept_up_to_a_number(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "MOST_TEXTS", 3)
    writer = Exposition(registry)
    assert writer.page() == writer.page() == writer.page()
    assert len(writer._texts) < 2 * writer.page().count(b"\n")
