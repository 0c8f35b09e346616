"""Who has the token: in a header, as programs have it, or as a pass that a browser got for it at ``/login``."""

from __future__ import annotations

from typing import Protocol
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from .access import PASS_SECONDS, Access
from .failures import problem_response
from .hosts import is_safe
from .problems import Problem, Refused

PASS = "signalbus_pass"  # noqa: S105 - the name of the cookie
LOGIN, LOGOUT = "/login", "/logout"
STATIC = "/static/"  # only what is in the package


class LoginPage(Protocol):
    """Shows the form for the token again, with why it was refused."""

    def __call__(self, request: Request, *, error: str, status: int) -> Response:
        """Return the page."""
        ...


class TokenCheck:
    """Refuses requests without the token, if there is one: all but those that a login needs."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        request = Request(scope)
        if self._access.token is None or _is_public(request) or self._is_admitted(request):
            await self._app(scope, receive, send)
        elif _is_navigation(request):
            await RedirectResponse(LOGIN, 303)(scope, receive, send)
        else:
            raise Refused(_unknown())

    def _is_admitted(self, request: Request) -> bool:
        if shown := request.headers.getlist("authorization"):
            scheme, _, token = shown[0].partition(" ")
            return len(shown) == 1 and scheme.lower() == "bearer" and self._access.admits(token.strip())
        return self._access.admits_pass(request.cookies.get(PASS, ""))


def login_routes(access: Access, login_page: LoginPage) -> list[Route]:
    """Return the routes that give a browser its pass, and take it away."""

    async def login(request: Request) -> Response:
        form = parse_qs((await request.body()).decode("utf-8", "replace"), max_num_fields=10)
        token = form.get("token", [""])[0].strip()
        if access.token is not None and not access.admits(token):
            return login_page(request, error="This is not the token.", status=401)
        answer = RedirectResponse("/", 303)
        if access.token is not None:
            answer.set_cookie(
                PASS,
                access.make_pass(),
                max_age=PASS_SECONDS,
                httponly=True,
                samesite="strict",
                secure=_is_encrypted(request),
            )
        return answer

    async def logout(request: Request) -> Response:
        answer = RedirectResponse(LOGIN, 303)
        answer.delete_cookie(PASS, path="/")
        return answer

    return [Route(LOGIN, login, methods=["POST"]), Route(LOGOUT, logout, methods=["POST"])]


def refuse_plainly(request: Request, *, error: str, status: int) -> Response:
    """Say why a token was refused, where there is no page."""
    return problem_response(Problem(status=status, error=error, advice="send the token of this daemon"))


def _is_public(request: Request) -> bool:
    path = request.scope["path"]
    return path == LOGIN or (path.startswith(STATIC) and is_safe(request.method))


def _is_navigation(request: Request) -> bool:
    accepted = request.headers.get("accept", "")
    return request.method == "GET" and "text/html" in accepted and not request.scope["path"].startswith("/api/")


def _is_encrypted(request: Request) -> bool:
    """Tell whether the browser uses TLS, which may end before us: the origin says so."""
    return request.scope.get("scheme") == "https" or request.headers.get("origin", "").startswith("https://")


def _unknown() -> Problem:
    return Problem(
        status=401,
        error="this needs the token of the daemon",
        advice="send 'Authorization: Bearer TOKEN'; the commands take it from SIGNALBUS_TOKEN",
        type="Unauthorized",
        headers={"www-authenticate": 'Bearer realm="signalbus"'},
    )
