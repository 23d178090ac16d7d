"""A client of the typed API, sync and async: typed answers, one deadline over all attempts, polite retries.

It imports httpx (the extra `client`) and the schemas, nothing of the server.

>>> with Client(url) as client:
...     text = "The old mill stands on the river Aller near Celle. It was built in 1735."
...     reply = client.question_answering(QuestionInput(question="When was the mill built?", context=text))
>>> reply.results[0][0].answer
'1735'

ClientError
├── UnreachableError   there was no connection, or it broke again and again
├── DeadlineError      there was no answer in time
└── ProblemError       the server refused, and says why
    └── BusyError      429 or 503, and no time was left to try again
"""

import asyncio
import random
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from service.call import LONGEST_TIMEOUT_MS
from service.schemas import (
    Answer,
    Entity,
    Label,
    ProblemField,
    QuestionAnsweringParameters,
    QuestionInput,
    Response,
    Strict,
    TextClassificationParameters,
    TextPair,
    TokenClassificationParameters,
)

__all__ = ["AsyncClient", "BusyError", "Client", "ClientError", "DeadlineError", "ProblemError", "UnreachableError"]

Entry = TypeVar("Entry")

DEFAULT_TIMEOUT: Final = 30.0
# Without Retry-After the first pause is this long, and each is twice the one before it up to the longest.
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 5.0
# Clients that were refused together must not come back together: pauses grow by up to this part.
JITTER: Final = 0.5
BUSY: Final = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
# A request whose server died is sent again, since all calls only read; but not for ever: perhaps it kills servers.
LOST_RETRIES: Final = 2
# The connection broke after it was made. A proxy says 502 (RFC 9110, 15.6.3) for that; our server never does.
BROKEN: Final = (httpx.ReadError, httpx.WriteError, httpx.CloseError, httpx.RemoteProtocolError)
READY: Final = "/v2/health/ready"

_ANSWERS: Final = TypeAdapter(Response[Answer])
_LABELS: Final = TypeAdapter(Response[Label])
_FIELDS: Final = TypeAdapter(list[ProblemField])
_ENTITIES: Final = TypeAdapter(Response[Entity])


# A socket's limit of 0 means something else.
SHORTEST_WAIT: Final = 1e-3


class ClientError(Exception):
    """A request that got no answer; `lost`: its server may have begun with it, and then went away."""

    lost = False


class UnreachableError(ClientError):
    """There was no connection to the server, or it broke."""

    def __init__(self, message: str, *, lost: bool = False) -> None:
        """Keep whether it broke."""
        super().__init__(message)
        self.lost = lost


class DeadlineError(ClientError):
    """There was no answer in time."""


class ProblemError(ClientError):
    """The server refused: its problem body (RFC 9457), `errors` with a JSON pointer for each wrong field."""

    def __init__(self, status: int, body: dict[str, Any], retry_after: float | None) -> None:
        """Keep what the body says; `retry_after` is in seconds."""
        self.status = status
        self.title = str(body.get("title", ""))
        self.detail = str(body.get("detail", ""))
        self.request_id = str(body.get("request_id", ""))
        self.errors = _fields(body.get("errors"))
        self.retry_after = retry_after
        self.lost = status == HTTPStatus.BAD_GATEWAY
        request = f" (request {self.request_id})" if self.request_id else ""
        super().__init__(f"{status} {self.title}: {self.detail}{request}")


def _fields(errors: object) -> list[ProblemField]:
    try:
        return _FIELDS.validate_python(errors or [])
    except ValidationError:  # somebody else's `errors`
        return []


class BusyError(ProblemError):
    """The server has no room (503) or the key has no quota (429) now, and no time was left to try again."""


@dataclass
class Attempts:
    """When to try again: within `timeout` seconds of `began` on `time.monotonic()`'s clock."""

    timeout: float
    began: float
    failed: int = 0
    lost: int = 0

    def left(self, now: float) -> float:
        """Return the seconds that are left; never less than a millisecond, so that every attempt is a real one."""
        return max(self.began + self.timeout - now, 0.001)

    def pause(self, now: float, error: ClientError) -> float:
        """Return how many seconds to wait before the next attempt; raise `error` where the time would be over.

        So it does for a request that was lost more than LOST_RETRIES times.
        """
        self.lost += error.lost
        asked = error.retry_after if isinstance(error, ProblemError) else None
        base = asked if asked is not None else min(FIRST_PAUSE * 2**self.failed, LONGEST_PAUSE)
        self.failed += 1
        pause = base * (1 + JITTER * random.random())
        if pause >= self.left(now) or self.lost > LOST_RETRIES:
            raise error
        return pause


class _Face:
    """What both clients are made of; a request is (path, body)."""

    def __init__(self, base_url: str, api_key: str | None, timeout: float) -> None:
        self._url = base_url.rstrip("/")
        self._timeout = timeout
        self._headers = {"content-type": "application/json"}
        if api_key is not None:
            self._headers["authorization"] = f"Bearer {api_key}"

    def _attempts(self, timeout: float | None) -> Attempts:
        return Attempts(self._timeout if timeout is None else timeout, time.monotonic())

    def _request(self, task: str, inputs: object, model: str | None, parameters: Strict | None) -> tuple[str, bytes]:
        body: dict[str, object] = {"inputs": inputs}
        if model is not None:
            body["model"] = model
        if parameters is not None:
            body["parameters"] = parameters.model_dump(exclude_unset=True)
        return f"{self._url}/v1/{task}", TypeAdapter(dict[str, Any]).dump_json(body)

    def _timed(self, left: float) -> dict[str, str]:
        # The server waits no longer than that for one answer, and refuses to be asked to.
        milliseconds = min(left * 1000, LONGEST_TIMEOUT_MS)
        return {**self._headers, "x-request-timeout-ms": str(max(1, int(milliseconds)))}


def _settled(response: httpx.Response) -> bytes | ClientError:
    """Return the body of an answer, or the error to try again for. Raises ProblemError for any other status."""
    if response.status_code == HTTPStatus.OK:
        return response.content
    kind = BusyError if response.status_code in BUSY else ProblemError
    error = kind(response.status_code, _problem(response), _retry_after(response))
    if kind is BusyError or error.lost:
        return error
    raise error


def _problem(response: httpx.Response) -> dict[str, Any]:
    try:
        body = from_json(response.content)
    except ValueError:
        body = None
    # Not one of ours: a proxy's page.
    return body if isinstance(body, dict) else {"title": response.reason_phrase, "detail": response.text[:200]}


def _retry_after(response: httpx.Response) -> float | None:
    """Read Retry-After, seconds or a date (RFC 9110, 10.2.3); None where there is none that can be read."""
    value = response.headers.get("retry-after", "")
    if value.isascii() and value.isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def _unanswered(error: httpx.HTTPError, url: str) -> ClientError:
    """Return the error to try again for: nobody listened, or the connection broke. Raises for anything else."""
    told = f"{url}: {str(error) or type(error).__name__}"
    if isinstance(error, httpx.TimeoutException):
        raise DeadlineError(f"no answer in time from {told}") from error
    if isinstance(error, BROKEN):
        return UnreachableError(told, lost=True)
    unknown_host = any(isinstance(cause, socket.gaierror) for cause in _causes(error))
    if not isinstance(error, httpx.ConnectError) or unknown_host:
        raise UnreachableError(told) from error
    return UnreachableError(told)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _read(adapter: TypeAdapter[Response[Entry]], content: bytes, url: str) -> Response[Entry]:
    try:
        return adapter.validate_json(content)
    except ValidationError as error:
        raise ClientError(f"{url} did not answer as a sparselane server does: {error}") from error


class Client(_Face):
    """Asks a server; safe to share between threads.

    `timeout`, in seconds, is the whole time of a call with all its attempts; the server is told what is left of it.
    A call is tried again after 503, 429, and where nobody listens; at most LOST_RETRIES times where its server went
    away with it (a broken connection, or a proxy's 502). All calls raise ClientError.
    """

    def __init__(
        self, base_url: str = "http://localhost:8000", *, api_key: str | None = None, timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        """Connect to nothing yet."""
        super().__init__(base_url, api_key, timeout)
        self._http = httpx.Client()

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Close the client."""
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def ready(self) -> bool:
        """Return whether the server is there and takes requests; asks once."""
        try:
            return self._http.get(self._url + READY, timeout=self._timeout).status_code == HTTPStatus.OK
        except httpx.HTTPError:
            return False

    def question_answering(
        self,
        inputs: QuestionInput | Sequence[QuestionInput],
        *,
        model: str | None = None,
        parameters: QuestionAnsweringParameters | None = None,
        timeout: float | None = None,
    ) -> Response[Answer]:
        """Find the answers to questions in the texts that come with them; a list of answers per input."""
        request = self._request("question-answering", inputs, model, parameters)
        return _read(_ANSWERS, self._ask(request, timeout), request[0])

    def text_classification(
        self,
        inputs: str | TextPair | Sequence[str] | Sequence[TextPair],
        *,
        model: str | None = None,
        parameters: TextClassificationParameters | None = None,
        timeout: float | None = None,
    ) -> Response[Label]:
        """Label texts, or pairs for a model of pairs; a list of labels per input, best first."""
        request = self._request("text-classification", inputs, model, parameters)
        return _read(_LABELS, self._ask(request, timeout), request[0])

    def token_classification(
        self,
        inputs: str | Sequence[str],
        *,
        model: str | None = None,
        parameters: TokenClassificationParameters | None = None,
        timeout: float | None = None,
    ) -> Response[Entity]:
        """Find the entities in texts; a list of entities per input, in its order."""
        request = self._request("token-classification", inputs, model, parameters)
        return _read(_ENTITIES, self._ask(request, timeout), request[0])

    def _ask(self, request: tuple[str, bytes], timeout: float | None) -> bytes:
        url, body = request
        attempts = self._attempts(timeout)
        while True:
            left = attempts.left(time.monotonic())
            try:
                answer = _settled(self._post(url, body, left))
            except httpx.HTTPError as error:
                answer = _unanswered(error, url)
            if isinstance(answer, bytes):
                return answer
            time.sleep(attempts.pause(time.monotonic(), answer))

    def _post(self, url: str, body: bytes, left: float) -> httpx.Response:
        """Return the whole response within `left` seconds. Raises httpx.HTTPError."""
        limits = _Remaining(left)
        headers, extensions = self._timed(left), {"timeout": limits}
        with self._http.stream("POST", url, content=body, headers=headers, extensions=extensions) as response:
            content = bytearray()
            for piece in response.iter_raw():
                content += piece
                if limits.over:
                    raise httpx.ReadTimeout("the answer did not end in time", request=response.request)
        return httpx.Response(response.status_code, headers=response.headers, content=bytes(content))


class _Remaining(dict[str, float]):
    """The time limits that httpx asks for before each step (pool, connect, write, read): what is left of one budget."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._end = time.monotonic() + seconds

    @property
    def over(self) -> bool:
        return time.monotonic() >= self._end

    def get(self, _step: object = None, _default: object = None) -> float:
        return max(SHORTEST_WAIT, self._end - time.monotonic())


class AsyncClient(_Face):
    """As `Client`, for asyncio; cancelling a call closes its connection, and the server drops the work."""

    def __init__(
        self, base_url: str = "http://localhost:8000", *, api_key: str | None = None, timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        """Connect to nothing yet."""
        super().__init__(base_url, api_key, timeout)
        self._http = httpx.AsyncClient()

    async def __aenter__(self) -> Self:
        """Return the client."""
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Close the client."""
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def ready(self) -> bool:
        """Return whether the server is there and takes requests; asks once."""
        try:
            return (await self._http.get(self._url + READY, timeout=self._timeout)).status_code == HTTPStatus.OK
        except httpx.HTTPError:
            return False

    async def question_answering(
        self,
        inputs: QuestionInput | Sequence[QuestionInput],
        *,
        model: str | None = None,
        parameters: QuestionAnsweringParameters | None = None,
        timeout: float | None = None,
    ) -> Response[Answer]:
        """Find the answers to questions in the texts that come with them; a list of answers per input."""
        request = self._request("question-answering", inputs, model, parameters)
        return _read(_ANSWERS, await self._ask(request, timeout), request[0])

    async def text_classification(
        self,
        inputs: str | TextPair | Sequence[str] | Sequence[TextPair],
        *,
        model: str | None = None,
        parameters: TextClassificationParameters | None = None,
        timeout: float | None = None,
    ) -> Response[Label]:
        """Label texts, or pairs for a model of pairs; a list of labels per input, best first."""
        request = self._request("text-classification", inputs, model, parameters)
        return _read(_LABELS, await self._ask(request, timeout), request[0])

    async def token_classification(
        self,
        inputs: str | Sequence[str],
        *,
        model: str | None = None,
        parameters: TokenClassificationParameters | None = None,
        timeout: float | None = None,
    ) -> Response[Entity]:
        """Find the entities in texts; a list of entities per input, in its order."""
        request = self._request("token-classification", inputs, model, parameters)
        return _read(_ENTITIES, await self._ask(request, timeout), request[0])

    async def _ask(self, request: tuple[str, bytes], timeout: float | None) -> bytes:
        url, body = request
        attempts = self._attempts(timeout)
        while True:
            left = attempts.left(time.monotonic())
            try:
                # httpx times each read and write; this is the whole attempt.
                async with asyncio.timeout(left):
                    response = await self._http.post(url, content=body, headers=self._timed(left), timeout=None)
                answer = _settled(response)
            except TimeoutError as error:
                raise DeadlineError(f"no answer in time from {url}") from error
            except httpx.HTTPError as error:
                answer = _unanswered(error, url)
            if isinstance(answer, bytes):
                return answer
            await asyncio.sleep(attempts.pause(time.monotonic(), answer))
