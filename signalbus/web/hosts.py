"""By which name we are asked. Any other may be one that an attacker lets point at us: DNS rebinding."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from .access import Access
from .problems import Problem, Refused

_HOST = re.compile(r"(\[[0-9a-fA-F:.%]+\]|[^\s:\[\]/@?#]+)(?::(\d{1,5}))?")
_PORTS = {"http": "80", "https": "443"}
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


def is_safe(method: str) -> bool:
    """Tell whether a method promises to change nothing."""
    return method in _SAFE


class HostCheck:
    """Refuses requests for other hosts."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        hosts = Headers(scope=scope).getlist("host")
        match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if match is None or not self._access.knows(match[1].strip("[]")):
            shown = ascii(hosts[0])[:80] if hosts else "none"
            raise Refused(
                Problem(
                    status=421,
                    error=f"this is not the host {shown}",
                    advice="ask for the address that it listens on, or let it know its other names: SIGNALBUS_HOSTS",
                )
            )
        await self._app(scope, receive, send)


class OriginCheck:
    """Refuses what pages of other origins let a browser send, and reads of theirs that are no navigation.

    Programs send neither ``Origin`` nor ``Sec-Fetch-Site``; a page cannot leave them out. Another port of the same
    host is another origin, though browsers call it the same site.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        headers = Headers(scope=scope)
        foreign = [origin for origin in headers.getlist("origin") if not _is_ours(origin, headers["host"])]
        if foreign or not _is_wanted(scope["method"], headers):
            raise Refused(
                Problem(
                    status=403,
                    error="this was sent by the page of another origin",
                    advice="open the page of this daemon itself; programs send no Origin and no Sec-Fetch-Site",
                )
            )
        await self._app(scope, receive, send)


def _is_ours(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin)
        port = parts.port
    except ValueError:
        return False
    default = _PORTS.get(parts.scheme)
    if default is None or parts.hostname is None or parts.path or parts.query or parts.username is not None:
        return False
    match = _HOST.fullmatch(host)
    if match is None:
        return False
    name, given = match[1].strip("[]").lower(), match[2] or default
    return parts.hostname == name and str(port or default) == given


def _is_wanted(method: str, headers: Headers) -> bool:
    if headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
        return True
    # A link to us: the browser shows the answer to its user, and not to the page that has the link.
    return (
        is_safe(method)
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest", "document") == "document"
    )
