"""The `sparselane` command, as `python -m service` too."""

import sys


def main() -> None:
    """Run the command; `serve` alone, as in the image, at once: the libraries of command lines take 0.2 s to load."""
    if sys.argv[1:] == ["serve"]:
        from service.server import main as serve

        serve()
    else:
        from service.cli import app

        app(prog_name="sparselane")


if __name__ == "__main__":
    main()
