"""A capacity plan for a terminal."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from service.capacity import HOURS_A_MONTH, Load, Plan


def as_table(plan: Plan) -> RenderableType:
    """Return the plan as a table, and below it what bounds it."""
    demand = plan.demand
    texts = f"{demand.tokens:g} tokens" + (f", p99 {demand.tokens_p99:g}" if demand.tokens_p99 else "")
    title = f"{plan.curve.model}: {demand.qps:g} requests/s of {texts}, p99 within {demand.p99_ms:g} ms"
    table = Table("", "", title=title, show_header=False)
    for name, value in _rows(plan).items():
        table.add_row(name, value)
    return Group(table, Text(f"Bounded by {plan.bound}."))


def _rows(plan: Plan) -> dict[str, str]:
    demand, pods = plan.demand, plan.pods.pods
    spare = f" ({plan.needed.pods} and {demand.spare} spare)" if demand.spare else ""
    rows = {
        "pods": f"{pods:,}{spare}; {pods + 1:,} during a rollout with maxSurge 1",
        "CPUs": f"{plan.cores:,} ({demand.cores} each)",
        "memory": f"{plan.total_bytes / 2**30:,.1f} GiB ({plan.memory_bytes // 2**20} MiB each)",
        "all pods there": _shown(plan.pods),
        f"{demand.spare} lost": _shown(plan.needed),
        "a request alone": f"p99 {_ms(plan.alone)}",
        "a pod can serve": f"{plan.capacity:,.0f} requests/s, and gets {demand.qps / pods:,.1f}",
    }
    if not demand.spare:
        del rows["0 lost"]
    if (cost := plan.cost_an_hour) is not None:
        rows["cost"] = f"{cost:,.2f} an hour, {cost * HOURS_A_MONTH:,.0f} a month of {HOURS_A_MONTH} hours"
    return rows


def _shown(load: Load) -> str:
    full = f"{load.utilization:.0%} full, CPU {load.cpu:.0%}"
    return f"{full}, p50 {_ms(load.p50)}, p99 {_ms(load.p99)}, {load.batch:.1f} a batch"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms"
