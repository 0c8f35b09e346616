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

from ..inspection import Inspection
from . import traces
from .access import Access
from .failures import Failures, problem_response
from .headers import SecurityHeaders
from .looks import Looks
from .operations import PREFIX, Context, Operation, Reply
from .problems import Problem, Refused, problem_of
from .values import written

REQUEST_SECONDS = 30.0  # for one answer
OPERATIONS: tuple[Operation, ...] = (*traces.OPERATIONS,)


def create_app(inspection: Inspection, access: Access, pages: Sequence[BaseRoute] = ()) -> Starlette:
    """Return the application. ``pages``: further routes, behind the same checks."""
    looks = Looks(inspection)
    app = Starlette(
        routes=[*(_route(operation, inspection, looks) for operation in OPERATIONS), *pages],
        middleware=[Middleware(SecurityHeaders), Middleware(Failures)],
        exception_handlers={HTTPException: _http_problem, Refused: _refusal},
    )
    app.state.closing = asyncio.Event()
    return app


def _route(operation: Operation, inspection: Inspection, looks: Looks) -> Route:
    async def answer(request: Request) -> Response:
        context = Context(inspection=inspection, looks=looks, by="api")
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


async def _given(request: Request) -> Mapping[str, Sequence[str]] | bytes:
    if request.method == "POST":
        return await request.body()
    return {name: request.query_params.getlist(name) for name in request.query_params}


def _response(reply: Reply) -> Response:
    headers = {"location": PREFIX + reply.location} if reply.location else None
    return Response(written(reply.value), reply.status, headers, media_type="application/json")


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return problem_response(error.problem)


async def _http_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    advice = "see /api/v1/openapi.json for what there is"
    return problem_response(
        Problem(status=error.status_code, error=error.detail, advice=advice, headers=error.headers or {})
    )
