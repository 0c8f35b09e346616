"""The addresses of the page."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope

from ...inspection import Inspection
from . import links
from .assets import ASSETS
from .changes import LetterChanges
from .letters import LetterPages
from .login import login_page
from .site import Site
from .subscribers import Rates, SubscriberPages, unknown_rates
from .traces import TracePages


def page_routes(inspection: Inspection, rates: Rates = unknown_rates) -> list[BaseRoute]:
    """Return the routes of the page. They read with GET and change with POST, and decide nothing about rights.

    ``rates``: how much goes through now, for those who read without JavaScript; others get it as events.
    ``GET /login`` shows the form; ``POST /login`` is the application's.
    """
    site = Site(inspection)
    traces, letters, changes, subscribers = (
        *(TracePages(site), LetterPages(site)),
        *(LetterChanges(site), SubscriberPages(site, rates)),
    )
    return [
        site.route(links.TRACES, traces.listing),
        site.route(links.SEARCH, traces.search),
        site.route(f"{links.SEARCH}/{{id}}", traces.show),
        site.route(links.LETTERS, letters.groups),
        site.route(links.LIST, letters.listing),
        site.route(links.AUDIT, letters.audit),
        site.route("/dead-letters/letters", letters.show),
        site.route("/dead-letters/letters/{id}", letters.show),
        site.route("/dead-letters/confirm", changes.confirm),
        site.route("/dead-letters/replay", changes.replay, method="POST"),
        site.route("/dead-letters/discard", changes.discard, method="POST"),
        site.route("/dead-letters/restore", changes.restore, method="POST"),
        site.route("/dead-letters/cancel", changes.cancel, method="POST"),
        site.route(links.REPLAYS, letters.replay),
        site.route(f"{links.REPLAYS}/{{id}}", letters.replay),
        site.route(links.SUBSCRIBERS, subscribers.show),
        Route("/login", _login),
        *(Route(f"/static/{asset.name}", asset.serve) for asset in ASSETS.values()),
        _Elsewhere("/{path:path}", site.lost),
    ]


class _Elsewhere(Route):
    """Any other address but those of programs, whose answers are no pages."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """See `Route`."""
        return (Match.NONE, {}) if scope["path"].startswith("/api/") else super().matches(scope)


def _login(request: Request) -> Response:
    return login_page(request)
