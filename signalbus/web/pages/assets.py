"""The style sheet, the script and the icon: read once, with an address that changes with their content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

_TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """A file that pages refer to."""

    name: str
    content: bytes
    version: str

    @property
    def url(self) -> str:
        """Its address; a browser may keep what it got there for good."""
        return f"/static/{self.name}?v={self.version}"

    async def serve(self, request: Request) -> Response:
        """Answer with the content."""
        lasting = request.query_params.get("v") == self.version
        headers = {"Cache-Control": "public, max-age=31536000, immutable" if lasting else "no-cache"}
        return Response(self.content, media_type=_TYPES[self.name.rpartition(".")[2]], headers=headers)


def _asset(name: str) -> Asset:
    content = (files("signalbus.web.pages") / "static" / name).read_bytes()
    return Asset(name=name, content=content, version=hashlib.sha256(content).hexdigest()[:12])


ASSETS = {"css": _asset("page.css"), "js": _asset("page.js"), "icon": _asset("icon.svg")}
