"""``signalbus subscribers``: who serves each subscription, and whether it gets anywhere."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ..escapes import escape
from ..liveness import SubscriberSession, SubscriptionState, SubscriptionStatus
from ..signals import utc_now
from .connect import command_bus, require_store
from .failures import Exit
from .interrupts import run_interruptible
from .options import NO_OPTIONS, Options, flag
from .output import Output, log_to_stderr

if TYPE_CHECKING:
    from rich.table import Table

    from ..bus import Bus

EXAMPLES = """Examples:
  signalbus subscribers
  signalbus subscribers --watch
  signalbus subscribers --json | jq '.subscriptions[] | select(.state != "up") | .name'"""

_GLYPHS = {
    SubscriptionState.UP: "✓",
    SubscriptionState.BUSY: "▸",
    SubscriptionState.STALLED: "!",
    SubscriptionState.GONE: "✗",
}


def subscribers(
    *,
    watch: Annotated[bool, flag("--watch", "Show it again and again, until Ctrl-C.")] = False,
    interval: Annotated[float, Parameter(help="Seconds between looks with --watch.")] = 1.0,
    options: Options = NO_OPTIONS,
) -> int:
    """List the subscriptions with their state, who serves them, and what waits.

    up: it keeps up. busy: signals wait, and are worked on. stalled: signals wait, somebody is there, and nothing is
    settled for longer than it should take. gone: nobody serves it. A subscriber that does not answer is alive, but
    its event loop is blocked or its process stopped. With --watch --json, one object a line for each look.
    """
    log_to_stderr(options)
    require_store(options)
    return run_interruptible(lambda: _subscribers(options, interval if watch else None))


async def _subscribers(options: Options, interval: float | None) -> int:
    output = Output(options)
    async with command_bus(options) as bus:
        if interval is None:
            _show(await bus.subscribers(), output, as_json=options.json)
        elif options.json or not output.watched:
            while True:
                _show(await bus.subscribers(), output, as_json=options.json)
                await asyncio.sleep(interval)
        else:
            await _live(bus, output, interval)
    return Exit.OK


async def _live(bus: Bus, output: Output, interval: float) -> None:
    from rich.live import Live

    with Live(console=output.console(), auto_refresh=False, screen=False) as live:
        while True:
            live.update(_table(await bus.subscribers()), refresh=True)
            await asyncio.sleep(interval)


def _show(statuses: Sequence[SubscriptionStatus], output: Output, *, as_json: bool) -> None:
    if as_json:
        output.json(at=utc_now().isoformat(), subscriptions=[_fields(status) for status in statuses])
    elif not statuses:
        output.note("signalbus: no subscriptions; serve one: signalbus run module:bus")
    else:
        output.table(_table(statuses))


def _fields(status: SubscriptionStatus) -> dict[str, object]:
    oldest = status.oldest_waiting
    return {
        **asdict(status),
        "oldest_waiting_seconds": None if oldest is None else oldest.total_seconds(),
        "sessions": [_session_fields(session) for session in status.sessions],
    }


def _session_fields(session: SubscriberSession) -> dict[str, object]:
    info = asdict(session.session)
    return {
        **info,
        "started": session.session.started.isoformat(),
        "answering": session.answering,
        "in_flight": session.in_flight,
        "last_error": session.last_error,
    }


def _table(statuses: Sequence[SubscriptionStatus]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table("subscription", "state", box=box.SIMPLE_HEAD)
    for heading in ("in flight", "waiting", "oldest"):
        table.add_column(heading, justify="right")
    table.add_column("subscribers")
    for status in statuses:
        table.add_row(
            escape(status.name),
            f"{_GLYPHS[status.state]} {status.state}",
            str(status.in_flight),
            str(status.waiting),
            "-" if status.oldest_waiting is None else _age(status.oldest_waiting),
            "\n".join(_session(session) for session in status.sessions) or "none",
        )
    return table


def _session(session: SubscriberSession) -> str:
    info = session.session
    words = f"{info.name} (pid {info.pid} at {info.host})"
    if not session.answering:
        words += " ! does not answer: its event loop is blocked, or its process stopped"
    elif session.last_error:
        words += f", last error: {session.last_error}"
    return escape(words)


def _age(age: timedelta) -> str:
    seconds = age.total_seconds()
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
