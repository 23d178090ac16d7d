"""What is the Prometheus operator given? rules.yaml, indented below the head of a PrometheusRule.

python k8s/overlays/monitoring/prometheusrule.py        after a change of rules.yaml; a test compares
"""

from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
HEAD: Final = """\
# Made from rules.yaml by prometheusrule.py: change that file, not this one.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: sparselane
  labels:
    app.kubernetes.io/name: sparselane
spec:
"""


def resource() -> str:
    """Return the PrometheusRule: the rules without the comments at their top, which speak of their own file."""
    rules = (HERE / "rules.yaml").read_text(encoding="utf-8")
    lines = rules[rules.index("groups:") :].splitlines(keepends=True)
    return HEAD + "".join(f"  {line}" if line.strip() else line for line in lines)


if __name__ == "__main__":
    (HERE / "prometheusrule.yaml").write_text(resource(), encoding="utf-8")
