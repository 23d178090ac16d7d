"""What a process sets up before it works: its log, and the thread pool of a library."""

import json
import logging
import os
import traceback
from datetime import UTC, datetime
from typing import Any, Final

from service.request_record import CURRENT

PLAIN: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def prepare(log_level: str, log_format: str = "plain") -> None:
    """Log to stderr from `log_level` on, uvicorn's lines too; keep the tokenizers library to the calling thread."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else PlainFormatter(PLAIN))
    logging.basicConfig(level=log_level.upper(), handlers=[handler])
    for library in ("uvicorn", "urllib3"):
        logging.getLogger(library).setLevel(max(logging.WARNING, logging.getLogger().level))
    # The tokenizer's own pool has a thread per CPU of the host, whatever our quota; this is its only switch.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class PlainFormatter(logging.Formatter):
    """A line for people; fields follow the message as name=value."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802, logging's name
        """Return the line without a traceback."""
        fields = _fields(record)
        written = [f"{name}={v if isinstance(v, str) and v.isalnum() else json.dumps(v)}" for name, v in fields.items()]
        return " ".join([super().formatMessage(record), *written])


class JsonFormatter(logging.Formatter):
    """One JSON object per line, ASCII alone: a text cannot end the line, or be taken for another one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line: time (RFC 3339, UTC), level, logger, message, the fields, and the traceback of an error."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return what a line was given as `extra={"fields": ...}`, else whose request it belongs to."""
    if (fields := getattr(record, "fields", None)) is not None:
        return dict(fields)
    request = CURRENT.get()
    if request is None:
        return {}
    known = {"request_id": request.request_id, "trace_id": request.trace_id, "caller": request.caller}
    return {name: value for name, value in known.items() if value is not None}


def where(error: BaseException) -> str:
    """Return what was raised and the way there, of the causes too, without the messages: they may quote a text."""
    parts = []
    cause: BaseException | None = error
    while cause is not None:
        parts.append("".join(traceback.format_tb(cause.__traceback__)) + type(cause).__qualname__)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "\nraised from\n".join(parts)
