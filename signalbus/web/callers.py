"""Who asks, for the audit: the name that a caller gives, else the address it calls from."""

from __future__ import annotations

from urllib.parse import quote, unquote

from starlette.requests import Request

from ..escapes import escape

HEADER = "X-Signalbus-User"
LENGTH = 100


def caller_of(request: Request) -> str:
    """Return who asks: one short line. The name is not proven, only told by somebody who may ask."""
    told = escape(unquote(request.headers.get(HEADER, ""))).strip()[:LENGTH]
    return told or (f"api at {request.client.host}" if request.client else "api")


def as_header(by: str) -> dict[str, str]:
    """Return the header that names a caller. Headers are ASCII, names need not be."""
    return {HEADER: quote(by[:LENGTH], safe=" @:/.,;()+-_")} if by.strip() else {}
