"""How many requests are answered at a time: more are refused at once, rather than all of them slowed down."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from .problems import RETRY_SECONDS, Problem, Refused

REQUESTS = 128


class CrowdCheck:
    """Refuses what is too much."""

    def __init__(self, app: ASGIApp, limit: int = REQUESTS) -> None:
        self._app = app
        self._limit = limit
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if self._running >= self._limit:
            raise Refused(
                Problem(
                    status=503,
                    error=f"{self._running} requests are being answered already",
                    advice="try again a little later",
                    headers={"retry-after": RETRY_SECONDS, "connection": "close"},
                )
            )
        self._running += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._running -= 1
