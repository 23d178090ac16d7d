"""The pages for people: a form to try the models at /, the API's reference at /docs. Nothing comes from outside."""

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import MappingProxyType
from typing import Final

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

FOLDER: Final = Path(__file__).parent / "page"
TYPES: Final = MappingProxyType(
    {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
)
FILES: Final = ("page.css", "page.js", "docs.js", "icon.svg")
PATHS: Final = MappingProxyType({"/": "index.html", "/docs": "docs.html", **{f"/page/{name}": name for name in FILES}})
HEADERS: Final = MappingProxyType(
    {
        # Nothing but our own files and our own API; no inline script or style, and no text that becomes markup.
        "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        # Asked for again at each visit and answered 304: after an update nobody runs an old script on a new page.
        "cache-control": "no-cache",
    }
)


def add_page_routes(app: FastAPI) -> None:
    """Serve the files of service/page/, read once, now. They need no API key: there is nothing secret in them."""
    for path, name in PATHS.items():
        app.add_route(path, _answering(FOLDER / name), methods=["GET"], include_in_schema=False)


def _answering(file: Path) -> Callable[[Request], Awaitable[Response]]:
    content = file.read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {**HEADERS, "etag": tag}

    async def answer(request: Request) -> Response:
        known = request.headers.get("if-none-match", "")
        if tag in (part.strip().removeprefix("W/") for part in known.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=TYPES[file.suffix])

    return answer
