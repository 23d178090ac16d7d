"""How is the page of /metrics written? As prometheus_client writes it, in half the time.

While a scrape is written nothing else in Python runs for long, and this is most of what a scrape takes. The names and
labels of a sample never change, so their text is made once.
"""

from math import isfinite
from typing import Final

from prometheus_client.registry import CollectorRegistry

# What the text format cannot hold as it is: https://prometheus.io/docs/instrumenting/exposition_formats/
_HELP: Final = str.maketrans({"\\": r"\\", "\n": r"\n"})
_VALUE: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
# Samples' texts that are kept: labels of models that went are forgotten with all others, once in a while.
MOST_TEXTS: Final = 50_000

# When a series was made: no sample of this format, which has no place for it.
_CREATED: Final = "_created"

_Labels = tuple[tuple[str, str], ...]


class Exposition:
    """Writes a registry's metrics in Prometheus' text format; several threads may ask at once."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Write those of `registry`."""
        self._registry = registry
        self._texts: dict[tuple[str, _Labels], str] = {}

    def page(self) -> bytes:
        """Return the metrics as they are now."""
        texts, lines = self._texts, []
        if len(texts) > MOST_TEXTS:
            texts = self._texts = {}
        for metric in self._registry.collect():
            name = f"{metric.name}_total" if metric.type == "counter" else metric.name
            lines.append(f"# HELP {name} {metric.documentation.translate(_HELP)}\n# TYPE {name} {metric.type}\n")
            for sample in metric.samples:
                if sample.name.endswith(_CREATED):
                    continue
                key = sample.name, tuple(sample.labels.items())
                text = texts.get(key) or texts.setdefault(key, _text(*key))
                lines.append(f"{text}{_number(sample.value)}\n")
        return "".join(lines).encode()


def _text(name: str, labels: _Labels) -> str:
    if not labels:
        return f"{name} "
    inside = ",".join(f'{label}="{value.translate(_VALUE)}"' for label, value in sorted(labels))
    return f"{name}{{{inside}}} "


def _number(value: float) -> str:
    if isfinite(value):
        return repr(float(value))
    return "NaN" if value != value else "+Inf" if value > 0 else "-Inf"
