"""Bodies of requests: how large, how slow, and of what kind they may be. Read here, before anything is done."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .hosts import is_safe
from .problems import Problem, Refused

LIMIT = 1 << 20  # bytes
SECONDS = 10.0
JSON, FORM = "application/json", "application/x-www-form-urlencoded"
# What is left of a body that was refused is not read: the connection ends with the answer.
_CLOSE = {"connection": "close"}


class BodyCheck:
    """Reads the body of what changes something; nothing else may have one."""

    def __init__(self, app: ASGIApp, limit: int = LIMIT, seconds: float = SECONDS) -> None:
        self._app = app
        self._limit = limit
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        headers = Headers(scope=scope)
        length = _length(headers)
        if is_safe(scope["method"]):
            if length or "transfer-encoding" in headers:
                raise Refused(_too_large("a request that reads has no body"))
            await self._app(scope, receive, send)
            return
        if length is not None and length > self._limit:
            raise Refused(_too_large(f"the body has {length} bytes"))
        _check_kind(scope["path"], headers)
        body = await self._read(receive)
        if body is not None:
            await self._app(scope, _again(body, receive), send)

    async def _read(self, receive: Receive) -> bytes | None:
        """Return the body; None if the client is gone."""
        body = bytearray()
        try:
            async with asyncio.timeout(self._seconds):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        return None
                    body += message.get("body", b"")
                    if len(body) > self._limit:  # whatever it said before
                        raise Refused(_too_large(f"the body has more than {self._limit} bytes"))
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError as error:
            problem = Problem(
                status=408,
                error=f"the body did not come within {self._seconds:g} s",
                advice="send it at once",
                headers=_CLOSE,
            )
            raise Refused(problem) from error


def _again(body: bytes, receive: Receive) -> Receive:
    """Return a function that gives the body once, and then tells when the client leaves."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def give() -> Message:
        return messages.pop() if messages else await receive()

    return give


def _length(headers: Headers) -> int | None:
    text = headers.get("content-length")
    return int(text) if text is not None else None  # the server takes digits only


def _check_kind(path: str, headers: Headers) -> None:
    wanted = JSON if path.startswith("/api/") else FORM
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != wanted or headers.get("content-encoding", "identity").lower() != "identity":
        problem = Problem(
            status=415,
            error=f"the body is {ascii(kind)[:80]}" + (", encoded" if "content-encoding" in headers else ""),
            advice=f"send {wanted}, as it is",
            headers=_CLOSE,
        )
        raise Refused(problem)


def _too_large(error: str) -> Problem:
    return Problem(status=413, error=error, advice=f"send at most {LIMIT} bytes", headers=_CLOSE)
