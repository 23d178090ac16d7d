"""What a process sets up before it works: its log, and the thread pool of a library."""

import logging
import os


def prepare(log_level: str) -> None:
    """Log to stderr from `log_level` on; keep the tokenizers library to the calling thread."""
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.getLogger().level))
    # The tokenizer's own pool has a thread per CPU of the host, whatever our quota; this is its only switch.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
