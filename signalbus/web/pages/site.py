"""What all pages share: the frame round them, their routes, and what becomes of errors."""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from ...brokers.base import BrokerState
from ...config import masked
from ...errors import BrokerError, BusClosed, ConfigError, NotPermitted, SignalBusError
from ...inspection import Inspection
from ...ledger import LedgerError
from .assets import ASSETS
from .environment import make_environment

PAGE_SECONDS = 20.0  # for all that a page asks; each question has a shorter deadline of its own

PASS = "signalbus_pass"  # noqa: S105 - the name of the cookie that `signalbus.web` gives for a token

Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What stands round every page. ``broker``: its state in a word; ``troubles``: sentences, most urgent first."""

    place: str
    broker: str
    working: bool
    troubles: tuple[str, ...]
    version: str
    signed_in: bool


class NotFound(SignalBusError):
    """Raised when there is nothing at an address; the text says what to do."""


class Site:
    """The pages of one bus."""

    def __init__(self, inspection: Inspection) -> None:
        self.inspection = inspection
        self._environment = make_environment()
        self._version = importlib.metadata.version("signalbus-router")

    def route(self, path: str, endpoint: Endpoint, *, method: str = "GET") -> Route:
        """Return a route whose errors become pages and whose time is bounded."""

        async def answer(request: Request) -> Response:
            try:
                async with asyncio.timeout(PAGE_SECONDS):
                    return await endpoint(request)
            except SignalBusError as error:
                return self._failure(request, error)
            except TimeoutError:
                return self._failure(request, BrokerError(f"no answer within {PAGE_SECONDS:g} s"))

        return Route(path, answer, methods=[method])

    def page(self, request: Request, template: str, *, status: int = 200, **values: object) -> HTMLResponse:
        """Render a page."""
        found = self._environment.get_template(template)
        text = found.render(
            frame=self.frame(signed_in=PASS in request.cookies), assets=ASSETS, here=request.url.path, **values
        )
        return HTMLResponse(text.encode("utf-8", "replace"), status_code=status)

    def frame(self, *, signed_in: bool = False) -> Frame:
        """Return what stands round a page now."""
        bus = self.inspection.bus
        health = bus.stats().broker
        away = f"The broker is {health.state.value}: {health.reason}" if health.reason else ""
        troubles = [*self.inspection.troubles(), away, *health.warnings]
        return Frame(
            place=masked(bus.settings.url),
            broker=health.state.value,
            working=health.state is BrokerState.UP,
            troubles=tuple(dict.fromkeys(trouble for trouble in troubles if trouble)),
            version=self._version,
            signed_in=signed_in,
        )

    async def lost(self, request: Request) -> Response:
        """Answer where there is nothing."""
        return self._failure(request, NotFound(f"there is no page at {request.url.path[:80]!a}"))

    def _failure(self, request: Request, error: SignalBusError) -> HTMLResponse:
        status, title = next(told for kind, told in _STATUS if isinstance(error, kind))
        return self.page(request, "error.html", status=status, title=title, message=str(error))


#: The first that fits counts.
_STATUS: tuple[tuple[type[SignalBusError], tuple[int, str]], ...] = (
    (NotFound, (404, "Not found")),
    (NotPermitted, (503, "The broker refuses us")),
    (ConfigError, (422, "That question cannot be answered")),
    (BusClosed, (503, "The bus is closed")),
    (LedgerError, (500, "The store may be damaged")),
    (SignalBusError, (503, "Not now")),
)
