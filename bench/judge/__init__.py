"""How good is an artifact? The measurements behind docs/models.md; `python -m bench.models` runs them."""
