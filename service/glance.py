"""Can a request be refused at a glance, from its bytes as they came? And what are the bytes of the refusal?

While requests are refused, most get the same answer. To parse each, to make a scope and a task and to ask the
application for it costs many times what is done here. Only what nearly all clients send is recognised; whatever is odd
takes the usual way, and gets the same answer there.
"""

import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from math import inf
from random import getrandbits
from time import perf_counter
from typing import Final

from prometheus_client import Counter

from service.deadlines import Door, is_to_a_model
from service.errors import OverloadedError, meaning, problem
from service.metrics import Metrics
from service.middleware import PROBLEM_JSON, REQUEST_ID, Lifecycle, log, log_access
from service.request_record import RequestRecord
from service.tracing import parse

# A head in the plainest form of RFC 9112: printable path, no folded line, no space before a colon. Stricter than the
# parser, so that both agree on where a request ends.
HEAD: Final = re.compile(
    rb"POST (/[A-Za-z0-9/._~-]*)(?:\?[!-~]*)? HTTP/1\.1\r\n((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*\r\n)+)\r\n"
)
# What asks for more than an answer, or says that the body has another form.
UNUSUAL: Final = frozenset({"transfer-encoding", "expect", "upgrade"})
LENGTH: Final = re.compile(r"[0-9]{1,12}")
# A client sends the same head again and again: so many of at most so many bytes are remembered, a megabyte at most.
HEADS, MOST_HEAD_BYTES = 256, 4096
# So long a refusal holds for others with the same deadline. Waits are a hundred times longer, and who might have been
# let in meanwhile leaves room for the next one.
SAME_SECONDS: Final = 0.005

_END: Final = b"\r\n\r\n"
_MEANS: Final = meaning(OverloadedError(""))


@dataclass(frozen=True)
class Head:
    """What was read of a head: the bytes of the whole request, its path and fields, what decides, who counts it."""

    size: int
    path: str
    fields: Mapping[str, str]
    allowed: tuple[str | None, str | None]
    request_id: str | None
    counted: Counter


@dataclass(frozen=True)
class Refusal:
    """An answer without the request's id, which goes behind `head` and `body`; `size`: bytes of its body without it."""

    head: str
    body: str
    size: int

    def __call__(self, request_id: str) -> bytes:
        """Return the answer to one request."""
        length = self.size + len(request_id)
        return f'{self.head}{request_id}\r\ncontent-length: {length}\r\n\r\n{self.body}{request_id}"}}'.encode()


class Glance:
    """Refuses requests to models as the application would, without it: the same answer, counted and logged alike."""

    def __init__(self, door: Door, metrics: Metrics, tasks: Iterable[str], lifecycle: Lifecycle, origins: bool) -> None:
        """Refuse where `door` does. origins: pages of other origins may call, whose answers have more headers."""
        self._door = door
        self._lifecycle = lifecycle
        self._unusual = UNUSUAL | {"origin"} if origins else UNUSUAL
        self._counted: Mapping[str, Counter] = {f"/v1/{task}": metrics.refused(task) for task in tasks}
        self._others = metrics.refused()
        self._heads: dict[bytes, Head | None] = {}
        self._refusals: dict[tuple[str | None, str | None], Refusal] = {}
        self._hold_until = -inf

    @property
    def worth_it(self) -> bool:
        """Whether requests are being refused, and connections are kept afterwards."""
        return self._door.shut and not self._lifecycle.stopping

    def refusal(self, data: bytes, start: int, more: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, int] | None:
        """Return the answer to the request that begins at `start`, with `more` headers, and where the request ends.

        That may be behind the end of `data`. None: it may be in time, asks no model, or is odd.
        """
        began = perf_counter()
        end = data.find(_END, start, start + MOST_HEAD_BYTES)
        if end < 0:
            return None
        lines = data[start : end + len(_END)]
        head = self._heads[lines] if lines in self._heads else self._remembered(lines)
        refusal = None if head is None else self._refusal(head, began, more)
        if head is None or refusal is None:
            return None
        request_id = head.request_id or f"{getrandbits(128):032x}"
        head.counted.inc()
        if log.isEnabledFor(logging.INFO):
            _log(head, request_id, began)
        return refusal(request_id), start + head.size

    def _remembered(self, lines: bytes) -> Head | None:
        if len(self._heads) >= HEADS:
            self._heads.clear()
        self._heads[lines] = head = self._read(lines)
        return head

    def _read(self, lines: bytes) -> Head | None:
        """Return what a head says; None: it is odd."""
        match = HEAD.fullmatch(lines)
        if match is None:
            return None
        path, fields = match[1].decode("ascii"), _fields(match[2])
        length = fields.get("content-length", "0")
        if (
            not is_to_a_model("POST", path)
            or not LENGTH.fullmatch(length)
            or not self._unusual.isdisjoint(fields)
            or fields.get("connection", "keep-alive").lower() != "keep-alive"
        ):
            return None
        given = fields.get("x-request-id", "")
        return Head(
            size=len(lines) + int(length),
            path=path,
            fields=fields,
            allowed=(fields.get("x-request-timeout-ms"), fields.get("x-priority")),
            request_id=given if REQUEST_ID.fullmatch(given) else None,
            counted=self._counted.get(path, self._others),
        )

    def _refusal(self, head: Head, now: float, more: Iterable[tuple[bytes, bytes]]) -> Refusal | None:
        """Return the refusal of a request that comes now; None: it is let in. A refusal holds for a while."""
        if now >= self._hold_until:
            self._refusals.clear()
            self._hold_until = now + SAME_SECONDS
        refusal = self._refusals.get(head.allowed)
        if refusal is None and (error := self._door.refusal(head.fields, now)):
            self._refusals[head.allowed] = refusal = _written(error, more)
        return refusal


def _fields(lines: bytes) -> dict[str, str]:
    """Return the fields of a head by their lower-case names; the last of each, but both of two lengths."""
    fields: dict[str, str] = {}
    for line in lines.decode("latin-1").split("\r\n")[:-1]:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip(" \t")
        if name == "content-length" and name in fields:
            value = f"{fields[name]}, {value}"  # which is no length: the parser knows what to say of it
        fields[name] = value
    return fields


def _written(error: OverloadedError, more: Iterable[tuple[bytes, bytes]]) -> Refusal:
    """Write all of an answer that is the same for many requests."""
    body = json.dumps(problem(_MEANS.status, _MEANS.title, error.detail, ""), separators=(",", ":")).removesuffix('"}')
    lines = [
        f"HTTP/1.1 {_MEANS.status} {HTTPStatus(_MEANS.status).phrase}",
        *(b": ".join(header).decode("latin-1") for header in more),
        f"content-type: {PROBLEM_JSON}",
        f"retry-after: {error.retry_after}",
        "x-request-id: ",
    ]
    return Refusal("\r\n".join(lines), body, len(body) + len('"}'))


def _log(head: Head, request_id: str, began: float) -> None:
    record = RequestRecord(request_id, began)
    trace = parse(head.fields.get("traceparent", ""), head.fields.get("tracestate", ""))
    record.trace_id = trace.trace_id if trace else None
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in head.fields.items()]
    scope = {"method": "POST", "path": head.path, "headers": headers}
    log_access(logging.INFO, scope, None, _MEANS.status, _MEANS.outcome, record, perf_counter() - began)
