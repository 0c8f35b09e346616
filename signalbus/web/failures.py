"""What nobody expected, as an answer: logged with its traceback, which the answer does not show."""

from __future__ import annotations

import logging

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .problems import Problem, Refused
from .values import written

log = logging.getLogger(__name__)


class Failures:
    """Turns refusals, and bugs, of what is inside into answers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request; nothing but HTTP is served."""
        if scope["type"] != "http":
            raise ValueError(f"{scope['type']} is not served")
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            if started:
                raise  # too late for an answer: the server logs it, and cuts the connection
            await problem_response(_problem(error, scope))(scope, receive, send)


def _problem(error: Exception, scope: Scope) -> Problem:
    if isinstance(error, Refused):
        return error.problem
    log.error("%s %s failed", scope["method"], ascii(scope["path"])[:200], exc_info=error)
    return Problem(status=500, error="this is a bug of ours", advice="see the log of this process")


def problem_response(problem: Problem) -> Response:
    """Return a problem as an answer."""
    return Response(written(problem.fields()), problem.status, problem.headers, media_type="application/json")
