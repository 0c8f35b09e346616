"""Whether an application is about to stop: streams, which have no end of their own, end then."""

from __future__ import annotations

import asyncio

from starlette.applications import Starlette


def closing_of(app: Starlette) -> asyncio.Event:
    """Return the event that is set once the application is to stop."""
    closing = app.state.closing
    assert isinstance(closing, asyncio.Event)
    return closing
