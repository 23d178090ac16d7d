"""What does the Grafana dashboard show? This file says it, and writes dashboard.json for Grafana 10 and newer.

python k8s/overlays/monitoring/dashboard.py        after a change here, with what `make setup` installs
"""

import json
from itertools import count
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.builders import dashboard as grafana
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard
from panels import Panel, graph, heat, listing, number

HERE: Final = Path(__file__).parent
SOURCE: Final = dashboard.DataSourceRef("prometheus", "${datasource}")
# What the three variables choose. `.*` for "all" matches series without the label, too: Prometheus without Kubernetes.
PODS: Final = 'namespace=~"$namespace"'
MODELS: Final = f'{PODS}, task=~"$task", model=~"$model"'
# process_... is every program's: only those of ours.
OURS: Final = f"and on (job, instance) sparselane_build_info{{{PODS}}}"
POD: Final = "{{pod}} {{instance}}"
RATE: Final = "[$__rate_interval]"
STAGES: Final = {
    "queue": "queue_wait_seconds",
    "tokenize": "tokenize_duration_seconds",
    "infer": "inference_duration_seconds",
    "post": "postprocess_duration_seconds",
    "total": "request_duration_seconds",
}
SERVER_FAULTS: Final = "overloaded|timeout|unavailable|error"


def main() -> None:
    """Write dashboard.json."""
    (HERE / "dashboard.json").write_text(page(), encoding="utf-8")


def page() -> str:
    """Return the dashboard as Grafana's JSON."""
    board = (
        grafana.Dashboard("sparselane")
        .uid("sparselane")
        .description("docs/operations.md, 'Read the dashboard', says what is normal.")
        .tags(["sparselane"])
        .timezone("browser")
        .time("now-3h", "now")
        .refresh("30s")
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .annotation(alerts())
    )
    for variable in variables():
        board = board.with_variable(variable)
    numbers = count(1)
    for title, panels in rows():
        board = board.with_row(grafana.Row(title).id(next(numbers)))
        for panel in panels:
            board = board.with_panel(panel.id(next(numbers)).datasource(SOURCE))
    return json.dumps(board.build(), cls=JSONEncoder, indent=1) + "\n"


def variables() -> list[grafana.DatasourceVariable | grafana.QueryVariable]:
    """Return what can be chosen at the top of the page."""
    chosen = [
        ("namespace", "label_values(sparselane_build_info, namespace)"),
        ("task", f"label_values(sparselane_requests_total{{{PODS}}}, task)"),
        ("model", f'label_values(sparselane_requests_total{{{PODS}, task=~"$task"}}, model)'),
    ]
    return [grafana.DatasourceVariable("datasource").label("Prometheus").type("prometheus")] + [
        grafana.QueryVariable(name)
        .label(name)
        .datasource(SOURCE)
        .query({"query": query, "refId": name})
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(dashboard.VariableOption(selected=True, text="All", value="$__all"))
        for name, query in chosen
    ]


def alerts() -> grafana.AnnotationQuery:
    """Return the marks on all graphs where an alert fired."""
    return (
        grafana.AnnotationQuery()
        .name("Alerts")
        .datasource(SOURCE)
        .enable(True)
        .icon_color("red")
        .expr(f'ALERTS{{alertname=~"Sparselane.+", alertstate="firing", {PODS}}}')
    )


def rows() -> list[tuple[str, list[Panel]]]:
    """Return the page from top to bottom: what users see, then where it comes from."""
    return [
        ("Objectives", objectives()),
        ("Traffic", traffic()),
        ("Latency of answers", latency()),
        ("Queue and batches", queue_and_batches()),
        ("CPU and memory", cpu_and_memory()),
        ("Models and pods", models_and_pods()),
    ]


def objectives() -> list[Panel]:
    """Are users well served? The numbers of the alerts, from their recording rules."""
    failures = "namespace:sparselane_failures:ratio_rate"
    slow = "namespace_model:sparselane_slow_answers:ratio_rate"
    by_model = f'{PODS}, model=~"$model"'
    windows = ("5m", "1h", "6h", "3d")
    valid = f"sum(namespace:sparselane_valid_requests:rate5m{{{PODS}}})"
    return [
        number("Requests", "Valid requests per second.", "reqps", valid),
        number(
            "Not failed",
            "Share of valid requests that did not fail through the server, in five minutes. Objective: 99.9 %.",
            "percentunit",
            f"1 - sum(namespace:sparselane_failures:rate5m{{{PODS}}}) / {valid}",
        ),
        number(
            "Within 250 ms",
            "Share of answers that took at most 250 ms, in five minutes. Objective: 99 %.",
            "percentunit",
            f"1 - sum(namespace_model:sparselane_slow_answers:rate5m{{{by_model}}})"
            f" / sum(namespace_model:sparselane_answers:rate5m{{{by_model}}})",
        ),
        number("Pods ready", "Pods whose /readyz says 200.", "none", f"sum(sparselane_ready{{{PODS}}})"),
        number(
            "Models not ready",
            "Models that could not be loaded, over all pods.",
            "none",
            f"sum(1 - sparselane_model_ready{{{PODS}}})",
        ),
        number(
            "Alerts",
            "Alerts of sparselane that fire now.",
            "none",
            f'count(ALERTS{{alertname=~"Sparselane.+", alertstate="firing", {PODS}}}) or vector(0)',
        ),
        graph(
            "Availability: burn rate",
            "How fast failures use up the budget of 0.1 %: at 1 it lasts 30 days. Pages above 14.4 (1 h), 6 (6 h).",
            "none",
            *((f"{failures}{window}{{{PODS}}} / 0.001", f"{window} {{{{namespace}}}}") for window in windows),
        ),
        graph(
            "Latency: burn rate",
            "How fast answers over 250 ms use up the budget of 1 %, by model.",
            "none",
            *((f"{slow}{window}{{{by_model}}} / 0.01", f"{window} {{{{model}}}}") for window in windows),
        ),
        graph(
            "Refused and failed",
            "Share of valid requests by how they failed; overloaded is a 503 before any work.",
            "percentunit",
            (
                "sum by (outcome) (namespace_task_model_outcome:sparselane_requests:rate5m"
                f'{{{PODS}, outcome=~"{SERVER_FAULTS}"}})'
                f" / on () group_left () {valid}",
                "{{outcome}}",
            ),
        ),
    ]


def traffic() -> list[Panel]:
    """What is asked, and how does it end?"""
    return [
        graph(
            "Requests by outcome",
            "ok is the goodput. What was refused before its model was known counts as model none.",
            "reqps",
            (f"sum by (outcome) (rate(sparselane_requests_total{{{MODELS}}}{RATE}))", "{{outcome}}"),
            stacked=True,
        ),
        graph(
            "Answers by model",
            "Answered requests.",
            "reqps",
            (f'sum by (model) (rate(sparselane_requests_total{{{MODELS}, outcome="ok"}}{RATE}))', "{{model}}"),
        ),
        graph(
            "Tokens by model",
            "Tokens per second that answers made the models read: what quotas count, and what costs CPU.",
            "none",
            (f"sum by (model) (rate(sparselane_input_tokens_sum{{{MODELS}}}{RATE}))", "{{model}}"),
        ),
        graph(
            "Tokens per request",
            "Half and 99 of 100 requests made the models read at most so many.",
            "none",
            *((quantile(q, "input_tokens", "model"), f"p{q} {{{{model}}}}") for q in (50, 99)),
        ),
        graph(
            "Windows per request",
            "More than 1: texts longer than the model's window; nothing is cut off.",
            "none",
            (
                f"sum by (model) (rate(sparselane_windows_per_request_sum{{{MODELS}}}{RATE}))"
                f" / sum by (model) (rate(sparselane_windows_per_request_count{{{MODELS}}}{RATE}))",
                "{{model}}",
            ),
        ),
        graph(
            "Requests under way",
            "Requests that have no answer yet, by pod.",
            "none",
            (f"sparselane_inflight_requests{{{PODS}}}", POD),
        ),
    ]


def latency() -> list[Panel]:
    """How long do answers take, and where?"""
    return [
        graph(
            "Time of an answer",
            "From its head to its answer, at the server; half, 95 and 99 of 100 are faster.",
            "s",
            *((quantile(q, STAGES["total"]), f"p{q}") for q in (50, 95, 99)),
        ),
        graph(
            "Stages, p50",
            "Where the time goes: queue, tokenize, infer, post.",
            "s",
            *((quantile(50, name), stage) for stage, name in STAGES.items()),
        ),
        graph(
            "Stages, p99",
            "The slowest of 100. queue grows without infer: too few CPUs; infer grows: the CPU is throttled or shared.",
            "s",
            *((quantile(99, name), stage) for stage, name in STAGES.items()),
        ),
        graph(
            "p99 by model",
            "The slowest of 100 answers of each.",
            "s",
            (quantile(99, STAGES["total"], "model"), "{{model}}"),
        ),
        graph(
            "p99 by pod",
            "One pod above the others: its node is slow or busy.",
            "s",
            (quantile(99, STAGES["total"], "pod, instance"), POD),
        ),
        heat(
            "Answers by time",
            "How many took how long.",
            f"sum by (le) (rate(sparselane_request_duration_seconds_bucket{{{MODELS}}}{RATE}))",
        ),
    ]


def queue_and_batches() -> list[Panel]:
    """What waits, and what does the engine get at once?"""
    real, padded = (f'rate(sparselane_batch_tokens_sum{{{PODS}, kind="{kind}"}}{RATE})' for kind in ("real", "padded"))
    batches = f"sum(rate(sparselane_batch_size_count{{{PODS}}}{RATE}))"
    return [
        graph(
            "Requests that wait",
            "For the engine, by lane.",
            "none",
            (f"sum by (lane) (sparselane_queue_depth{{{PODS}}})", "{{lane}}"),
        ),
        graph(
            "Predicted wait",
            "Of a short request that comes now, by pod: replicas are scaled by it.",
            "s",
            (f"sparselane_predicted_wait_seconds{{{PODS}}}", POD),
        ),
        graph(
            "Tokens accepted",
            "And not answered yet, as a share of what may be (SPARSELANE_MAX_QUEUE_TOKENS). At 1 requests are refused.",
            "percentunit",
            (f"sparselane_queue_tokens{{{PODS}}} / sparselane_admission_limit_tokens{{{PODS}}}", POD),
        ),
        graph(
            "Batch size",
            "Windows and tokens in one call of the engine, on average.",
            "none",
            (f"sum(rate(sparselane_batch_size_sum{{{PODS}}}{RATE})) / {batches}", "windows"),
            (f"sum({real}) / {batches}", "tokens"),
            (f"sum({padded}) / {batches}", "tokens and padding"),
        ),
        graph(
            "Padding",
            "Share of the engine's lanes that no token fills. Short texts leave more.",
            "percentunit",
            (f"1 - sum({real}) / sum({padded})", "padding"),
        ),
        graph(
            "Engine",
            "Calls and tokens per second, by pod.",
            "none",
            (f"sum by (pod, instance) (rate(sparselane_batch_size_count{{{PODS}}}{RATE}))", f"calls {POD}"),
            (f"sum by (pod, instance) ({real})", f"tokens {POD}"),
        ),
    ]


def cpu_and_memory() -> list[Panel]:
    """Has it what it needs?"""
    throttled = f"rate(sparselane_process_cpu_throttled_periods_total{{{PODS}}}{RATE})"
    return [
        graph(
            "CPU",
            "CPUs in use, and the quota. Threads of the engine are as many as the quota has whole CPUs.",
            "none",
            (f"rate(process_cpu_seconds_total{{{PODS}}}{RATE}) {OURS}", f"used {POD}"),
            (f"max(sparselane_cpu_quota_cores{{{PODS}}})", "quota"),
            (f"max(sparselane_intra_op_threads{{{PODS}}})", "engine threads"),
        ),
        graph(
            "CPU throttling",
            "Share of the quota's periods in which the process was stopped. Alert above 25 %.",
            "percentunit",
            (f"{throttled} / rate(sparselane_process_cpu_periods_total{{{PODS}}}{RATE})", POD),
        ),
        graph(
            "Time stopped by the quota",
            "Seconds per second, summed over CPUs where the kernel does so.",
            "none",
            (f"rate(sparselane_process_cpu_throttled_seconds_total{{{PODS}}}{RATE})", POD),
        ),
        graph(
            "Memory",
            "Resident, and the limit after which the kernel kills.",
            "bytes",
            (f"process_resident_memory_bytes{{{PODS}}} {OURS}", POD),
            (f"max(sparselane_memory_limit_bytes{{{PODS}}})", "limit"),
        ),
        graph(
            "Event loop lag",
            "How late the loop that does HTTP and JSON comes to its work; p50 and p99.",
            "s",
            *(
                (
                    f"histogram_quantile({q / 100}, sum by (le) "
                    f"(rate(sparselane_event_loop_lag_seconds_bucket{{{PODS}}}{RATE})))",
                    f"p{q}",
                )
                for q in (50, 99)
            ),
        ),
        graph("Open files and connections", "Of the process.", "none", (f"process_open_fds{{{PODS}}} {OURS}", POD)),
    ]


def models_and_pods() -> list[Panel]:
    """What serves where, and since when?"""
    return [
        listing(
            "What serves",
            "Each model with its artifact's checksum: more than one row for a model means two versions at once.",
            f'count by (model, task, precision, sparsity, sha256) (sparselane_model_info{{{PODS}, model=~"$model"}})',
        ),
        graph("Ready by pod", "1 while /readyz says 200.", "none", (f"sparselane_ready{{{PODS}}}", POD)),
        graph(
            "Models ready",
            "1 while the model serves, by pod.",
            "none",
            (f'sparselane_model_ready{{{PODS}, model=~"$model"}}', "{{model}} " + POD),
        ),
        graph(
            "Loads since the start",
            "By /admin and SIGHUP; failed means that the former version goes on.",
            "none",
            (
                f'sum by (model, outcome) (sparselane_model_loads_total{{{PODS}, model=~"$model"}})',
                "{{model}} {{outcome}}",
            ),
        ),
        graph(
            "Load time",
            "How long each model took to load when it was loaded last.",
            "s",
            (f'max by (model) (sparselane_model_load_seconds{{{PODS}, model=~"$model"}})', "{{model}}"),
        ),
        graph(
            "Up since",
            "Time since the process started: a saw means restarts.",
            "s",
            (f"(time() - process_start_time_seconds{{{PODS}}}) {OURS}", POD),
        ),
    ]


def quantile(percent: int, name: str, by: str = "") -> str:
    """Return the query of a percentile of one of our histograms, over all pods, for each of `by`."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({percent / 100}, sum by ({labels}) (rate(sparselane_{name}_bucket{{{MODELS}}}{RATE})))"


if __name__ == "__main__":
    main()
