"""Who may call what: each request's key, as plain ASGI."""

from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ForbiddenError, UnauthorizedError
from service.keys import Key, Keyring
from service.request_record import current

# What never needs a key: probes and metrics, since a kubelet has none, and what a browser loads before anybody could
# type one. Nothing here tells of a model or a text.
OPEN: Final = frozenset({"/", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/favicon.ico"})
OPEN_BELOW: Final = ("/page/", "/docs/", "/v2/health/")
ADMIN: Final = "/admin"


class Access:
    """Lets a request through if its key may make it; notes the caller's name and quota on the request's record."""

    def __init__(self, app: ASGIApp, keys: Keyring) -> None:
        """Wrap `app`."""
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection, as ASGI says.

        Raises:
            UnauthorizedError: no key, or an unknown one. ForbiddenError: one that may not do this.
        """
        if scope["type"] == "http" and not _is_open(scope):
            self._admit(scope)
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        admin = scope["path"] == ADMIN or scope["path"].startswith(ADMIN + "/")
        if not self._keys.required:
            if admin:
                raise ForbiddenError(
                    "admin calls need a key with role admin: make one with `sparselane key NAME --role admin`, "
                    "put it into a file and name that in SPARSELANE_KEYS_FILE"
                )
            return
        key = self._key(Headers(scope=scope))
        record = current()
        record.caller = scope.setdefault("state", {})["caller"] = key.name
        if admin and key.role != "admin":
            raise ForbiddenError(f"the key of {key.name} has role {key.role}; admin calls need a key with role admin")
        record.quota = key.quota

    def _key(self, headers: Headers) -> Key:
        secret = _secret(headers)
        if not secret:
            raise UnauthorizedError("this server needs a key: send 'Authorization: Bearer KEY' or 'X-API-Key: KEY'")
        key = self._keys.find(secret)
        if key is None:
            raise UnauthorizedError("the key is unknown here: check for cut characters; it may have been withdrawn")
        return key


def _is_open(scope: Scope) -> bool:
    return scope["method"] in ("GET", "HEAD") and (scope["path"] in OPEN or scope["path"].startswith(OPEN_BELOW))


def _secret(headers: Headers) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()
