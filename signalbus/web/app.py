"""The application: routes made of operations, behind the checks that every request has to pass."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ..inspection import Inspection
from . import letters, openapi, state, traces
from .access import Access
from .bodies import BodyCheck
from .callers import caller_of
from .crowds import REQUESTS, CrowdCheck
from .events import DEFAULT_RHYTHM, Rhythm, Streams, events_route
from .failures import Failures, problem_response
from .headers import SecurityHeaders
from .health import health_routes
from .hosts import HostCheck, OriginCheck
from .looks import Looks
from .metrics import metrics_route
from .operations import PREFIX, Context, Operation, Reply
from .problems import Problem, problem_of
from .tokens import LoginPage, TokenCheck, login_routes, refuse_plainly
from .values import written

REQUEST_SECONDS = 30.0  # for one answer
OPERATIONS: tuple[Operation, ...] = (*traces.OPERATIONS, *letters.OPERATIONS, *state.OPERATIONS)


def create_app(
    inspection: Inspection,
    access: Access,
    pages: Sequence[BaseRoute] = (),
    login_page: LoginPage = refuse_plainly,
    *,
    looks: Looks | None = None,
    rhythm: Rhythm = DEFAULT_RHYTHM,
    crowd: int = REQUESTS,
) -> Starlette:
    """Return the application. ``pages``: further routes, behind the same checks; ``login_page``: for a wrong token.

    ``looks`` are shared with whoever else looks at the same bus.
    """
    looks, streams = looks or Looks(inspection), Streams()
    app = Starlette(
        routes=[
            *(_route(operation, inspection, looks) for operation in OPERATIONS),
            _openapi_route(),
            events_route(inspection, looks, streams, rhythm),
            metrics_route(inspection, looks, streams),
            *health_routes(inspection),
            *login_routes(access, login_page),
            *pages,
        ],
        middleware=[
            Middleware(SecurityHeaders),
            Middleware(Failures),
            Middleware(CrowdCheck, crowd),
            Middleware(HostCheck, access),
            Middleware(OriginCheck),
            Middleware(TokenCheck, access),
            Middleware(BodyCheck),
            Middleware(RawPaths),
        ],
        exception_handlers={HTTPException: _http_problem},
    )
    app.state.closing = asyncio.Event()
    return app


class RawPaths:
    """Leaves the path of an API request encoded: an id is one segment of it, also if there is a slash in it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["path"].startswith(PREFIX):
            scope["path"] = scope["raw_path"].decode("ascii")
        await self._app(scope, receive, send)


def _route(operation: Operation, inspection: Inspection, looks: Looks) -> Route:
    async def answer(request: Request) -> Response:
        context = Context(inspection=inspection, looks=looks, by=caller_of(request))
        in_path = {name: unquote(str(value)) for name, value in request.path_params.items()}
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                return _response(await operation.answer(context, in_path, await _given(request)))
        except Exception as error:
            problem = problem_of(error)
            if problem is None:
                raise
            return problem_response(problem)

    return Route(PREFIX + operation.path, answer, methods=[operation.method], name=operation.name)


def _openapi_route() -> Route:
    text = openapi.text_of(OPERATIONS)

    async def answer(request: Request) -> Response:
        return Response(text, media_type="application/json")

    return Route(f"{PREFIX}/openapi.json", answer)


async def _given(request: Request) -> Mapping[str, Sequence[str]] | bytes:
    if request.method == "POST":
        return await request.body()
    return {name: request.query_params.getlist(name) for name in request.query_params}


def _response(reply: Reply) -> Response:
    headers = {"location": PREFIX + reply.location} if reply.location else None
    return Response(written(reply.value), reply.status, headers, media_type="application/json")


async def _http_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    advice = "see /api/v1/openapi.json for what there is"
    return problem_response(
        Problem(status=error.status_code, error=error.detail, advice=advice, headers=error.headers or {})
    )
