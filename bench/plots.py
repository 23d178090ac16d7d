"""The pictures of a record. Each function draws one PNG, or none where its rows are missing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.engines import ENGINES, OURS
from bench.kernel_products import CROSSOVER_MATRIX
from bench.summary import CaseSummary, condense, summarize

Rows = Sequence[Mapping[str, str]]


def draw(folder: Path, tables: Mapping[str, Rows]) -> list[str]:
    """Draw what the tables allow and return the names of the pictures."""
    cases = summarize(tables["models"])
    drawn = {
        "headline": _headline(cases),
        "sparsity": _sparsity(cases),
        "crossover": _crossover(tables["kernels"]),
        "http": _http(tables["http"]),
        "soak": _soak(tables.get("soak_memory", ()), tables.get("soak_load", ())),
    }
    names = []
    for name, figure in drawn.items():
        if figure is not None:
            # Without the date and version that matplotlib adds: the same rows give the same file.
            figure.savefig(folder / f"{name}.png", dpi=110, metadata={"Software": None})
            names.append(name)
    return names


def _axes(title: str, x: str, y: str, panels: int = 1) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    figure = Figure(figsize=(5 * panels + 2, 4.2), layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for one in axes:
        one.set_xlabel(x)
        one.grid(visible=True, alpha=0.3)
    axes[0].set_ylabel(y)
    figure.suptitle(title)
    return figure, axes


def _headline(cases: Mapping[tuple[str, ...], CaseSummary]) -> Any:
    chosen = {key: case for key, case in cases.items() if case.purpose == "headline" and OURS in case.timings}
    if not chosen:
        return None
    model, zeros = next(iter(chosen))[:2]
    threads = list(dict.fromkeys(key[3] for key in chosen))
    title = f"{model}, {100 * float(zeros):g} % zeros, batch 1: time of a call"
    figure, axes = _axes(title, "tokens", "ms (logarithmic)", len(threads))
    for count, one in zip(threads, axes, strict=True):
        for name in ENGINES:
            points = [(c.tokens, c.timings[name]) for k, c in chosen.items() if k[3] == count and name in c.timings]
            if points:
                tokens = [p[0] for p in points]
                style = {"linewidth": 2.5, "color": "black"} if name == OURS else {"linewidth": 1}
                one.plot(tokens, [1e3 * p[1].median for p in points], marker="o", markersize=3, label=name, **style)
        one.set(xscale="log", yscale="log", title=f"{count} thread{'s' if count != '1' else ''}")
        ticks = sorted({case.tokens for case in chosen.values()})
        one.set_xticks(ticks, [str(tick) for tick in ticks])
        one.minorticks_off()
    axes[-1].legend(fontsize=7)
    return figure


def _sparsity(cases: Mapping[tuple[str, ...], CaseSummary]) -> Any:
    """BERT-Base over its zeros: all cases of the shape that was measured at most sparsities."""
    by_shape: dict[tuple[str, str, str], dict[float, CaseSummary]] = {}
    for (model, sparsity, shape, threads), case in cases.items():
        if OURS in case.timings:
            by_shape.setdefault((model, shape, threads), {})[100 * float(sparsity)] = case
    if not by_shape:
        return None
    (model, shape, threads), chosen = max(by_shape.items(), key=lambda item: len(item[1]))
    if len(chosen) < 2:
        return None
    title = f"{model}, {shape} tokens, threads: {threads}"
    figure, (axes,) = _axes(title, "zeros in the encoder, %", "ms (logarithmic)")
    for name in ENGINES:
        points = sorted((zeros, case.timings[name].median) for zeros, case in chosen.items() if name in case.timings)
        if points:
            axes.plot([p[0] for p in points], [1e3 * p[1] for p in points], marker="o", label=name)
    axes.set_yscale("log")
    axes.legend(fontsize=7)
    return figure


def _crossover(rows: Rows) -> Any:
    matrix = [str(size) for size in CROSSOVER_MATRIX]
    chosen = [r for r in rows if r["status"] == "ok" and [r["rows"], r["columns"]] == matrix and r["tiles"] == "4"]
    isas = list(dict.fromkeys(row["isa"] for row in chosen))
    if not isas:
        return None
    title = f"Which format for a matrix of {' x '.join(matrix)}? Four tiles of 32 tokens, one thread"
    figure, axes = _axes(title, "density (share of weights that are not zero)", "µs", len(isas))
    for isa, one in zip(isas, axes, strict=True):
        for name in dict.fromkeys(row["format"] for row in chosen):
            points = sorted(
                (float(r["density"]), 1e6 * float(r["best_s"]))
                for r in chosen
                if (r["isa"], r["format"]) == (isa, name)
            )
            one.plot([p[0] for p in points], [p[1] for p in points], marker="o", markersize=3, label=name)
        one.set(title=isa, xscale="log", yscale="log")
    axes[0].legend(fontsize=7)
    return figure


def _http(rows: Rows) -> Any:
    """Latency of what was accepted, and below it what was answered in time, over what was offered."""
    workloads = list(dict.fromkeys(row["workload"] for row in rows))
    if not workloads:
        return None
    title = "Open-loop load: latency of accepted requests, and what is answered in time"
    figure, axes = _axes(title, "requests offered/s", "ms (logarithmic)", len(workloads))
    for workload, one in zip(workloads, axes, strict=True):
        chosen = condense(row for row in rows if row["workload"] == workload)
        for name in ("p50_s", "p95_s", "p99_s"):
            points = [(float(row["offered_rate"]), 1e3 * float(row[name])) for row in chosen if row[name]]
            one.plot([p[0] for p in points], [p[1] for p in points], marker="o", label=name.removesuffix("_s"))
        one.set(title=workload, yscale="log")
        answered = one.twinx()
        rates = [(float(row["offered_rate"]), float(row["answered_rate"])) for row in chosen]
        answered.plot([r[0] for r in rates], [r[1] for r in rates], color="black", marker="s", label="in time/s")
        answered.set_ylim(bottom=0)
    answered.set_ylabel("answered in time/s (black)")
    axes[0].legend(fontsize=7)
    return figure


def _soak(memory: Rows, load: Rows) -> Any:
    if not memory or not load:
        return None
    figure, (sizes, files, waits) = _axes("Soak: steady mixed load", "minutes", "", 3)
    minutes = [float(row["second"]) / 60 for row in memory]
    resident = [float(row["resident_bytes"]) / 1e6 for row in memory]
    sizes.plot(minutes, resident)
    sizes.set(title="resident memory, MB", ylim=(0, 1.2 * max(resident)))
    for name in ("open_files", "threads"):
        files.plot(minutes, [int(row[name]) for row in memory], label=name.replace("_", " "))
    files.set(title="open files, threads", ylim=(0, None))
    files.legend(fontsize=7)
    for name in ("p50_s", "p99_s"):
        points = [(float(row["second"]) / 60, 1e3 * float(row[name])) for row in load if row[name]]
        waits.plot([p[0] for p in points], [p[1] for p in points], label=name.removesuffix("_s"))
    waits.set(title="latency, ms (logarithmic)", yscale="log")
    waits.legend(fontsize=7)
    return figure
