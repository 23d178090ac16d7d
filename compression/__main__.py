"""`python -m compression` does what `sparselane-compress` does."""

from compression.cli import app

app()
