"""How is a panel of the Grafana dashboard drawn: lines, a number, colours, a table?"""

from typing import Final

from grafana_foundation_sdk.builders import heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders.common import ReduceDataOptions, StackingConfig
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

# Panels in a row: three graphs, or six numbers, of the 24 columns.
GRAPH: Final = 8
NUMBER: Final = 4

Query = tuple[str, str]
Panel = timeseries.Panel | stat.Panel | heatmap.Panel | table.Panel


def graph(title: str, description: str, unit: str, *queries: Query, stacked: bool = False) -> timeseries.Panel:
    """Return lines over time; each query is an expression and its legend."""
    panel = timeseries.Panel().title(title).description(description).unit(unit).min(0).span(GRAPH).height(7)
    panel = panel.fill_opacity(30 if stacked else 5).show_points(common.VisibilityMode.NEVER)
    if stacked:
        panel = panel.stacking(StackingConfig().mode(common.StackingMode.NORMAL))
    for ref, (expression, legend) in zip("ABCDEFGH", queries, strict=False):
        panel = panel.with_target(prometheus.Dataquery().ref_id(ref).expr(expression).legend_format(legend).range())
    return panel


def number(title: str, description: str, unit: str, expression: str) -> stat.Panel:
    """Return one number: the latest."""
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .span(NUMBER)
        .height(4)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(prometheus.Dataquery().ref_id("A").expr(expression).range())
    )


def heat(title: str, description: str, expression: str) -> heatmap.Panel:
    """Return the buckets of a histogram as colours over time."""
    query = prometheus.Dataquery().ref_id("A").expr(expression).legend_format("{{le}}").range()
    return (
        heatmap.Panel()
        .title(title)
        .description(description)
        .span(GRAPH)
        .height(7)
        .calculate(False)
        .color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64))
        .y_axis(heatmap.YAxisConfig().unit("s"))
        .with_target(query.format(PromQueryFormat.HEATMAP))
    )


def listing(title: str, description: str, expression: str) -> table.Panel:
    """Return the labels of what is there now."""
    query = prometheus.Dataquery().ref_id("A").expr(expression).instant().format(PromQueryFormat.TABLE)
    hidden = dashboard.DataTransformerConfig(
        "organize", {"excludeByName": {"Time": True}, "renameByName": {"Value": "pods"}}
    )
    return (
        table.Panel()
        .title(title)
        .description(description)
        .span(GRAPH)
        .height(7)
        .with_transformation(hidden)
        .with_target(query)
    )
