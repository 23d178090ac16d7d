"""`python -m service` is the `sparselane` command."""

from service.cli import app

if __name__ == "__main__":
    app(prog_name="sparselane")
