"""The pages' files, at `/`, at `/label` and beside them, with headers that forbid what the page does not need.

Only the files that are in the folder at the start are served, each under its own route: a request's path never reaches
the file system.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import Response

PAGE = Path(__file__).parents[1] / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
"""The kinds of files that are served."""

HEADERS = {
    "Content-Security-Policy": "; ".join(
        [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' data:",  # The pictures of a conversation.
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            # Text becomes HTML only through DOMPurify, whose policy is the only one that may exist.
            "require-trusted-types-for 'script'",
            "trusted-types dompurify",
        ]
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def _sender(path: Path) -> Callable[[], Response]:
    """A handler that sends a file, read at each request so that an edit shows on reload."""

    def send() -> Response:
        return Response(path.read_bytes(), media_type=TYPES[path.suffix], headers=HEADERS)

    return send


router = APIRouter()
for path in sorted(PAGE.rglob("*")):
    if path.suffix in TYPES:
        name = path.relative_to(PAGE).as_posix().removesuffix(".html")
        router.add_api_route(f"/{'' if name == 'index' else name}", _sender(path), methods=["GET", "HEAD"])
