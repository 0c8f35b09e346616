"""Serving one bus in this process: open, wait, drain; again from the start when a source file changes."""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from enum import Enum
from importlib.util import find_spec

from ..bus import Bus
from ..config import SqliteUrl, parse_url
from ..errors import SignalBusError
from ..escapes import escape
from ..otel import install_if_asked
from ..web.access import Access
from ..web.window import window_on
from .failures import CommandError, Exit
from .interrupts import SIGNALS, stop_now
from .options import Options
from .output import Output
from .processes import watch_parent
from .reload import files_of, wait_changed, watched_files
from .target import load_bus

LOOK_SECONDS = 10.0  # for what the page asks
GARBAGE = 10_000  # objects that may be left before cycles are looked for; Python has 700, or 2,000 since 3.13


class Ending(Enum):
    """Why serving came to its end."""

    ASKED = "asked"
    RELOAD = "reload"


def serve_here(target: str, *, reload: bool, supervised: bool, listen: str | None, options: Options) -> int:
    """Serve ``module:bus`` until SIGINT or SIGTERM; ``supervised``: also until standard input ends.

    ``listen``: where the page is, ``off`` for nowhere; None for the usual place, if the broker is the embedded one.
    """
    output = Output(options)
    begun = time.time_ns()
    # A delivery makes no cycles, and lives just long enough to be looked at again and again: a tenth of the time.
    gc.set_threshold(GARBAGE)  # before the program is loaded, which may know better
    try:
        bus = load_bus(target, options)
    except BaseException as error:
        if not reload or isinstance(error, SignalBusError | CommandError | KeyboardInterrupt):
            raise
        return _wait_for_better(error, begun, output)
    install_if_asked(bus.settings.name)
    # What is loaded stays to the end, so there is no use in going through it again.
    gc.collect()
    gc.freeze()
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if find_spec("uvloop"):
        # By name: an optional package that type checkers need not have.
        loop_factory = importlib.import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        ending = runner.run(
            _serve(
                bus,
                output,
                reload_since=begun if reload else None,
                supervised=supervised,
                access=_access(bus, listen),
                as_json=options.json,
            )
        )
    if ending is Ending.RELOAD:
        _start_again()
    return Exit.OK


def _access(bus: Bus, listen: str | None) -> Access | None:
    """Return where the page is to be. Raises `CommandError` where a router serves it."""
    if listen == "off":
        return None
    embedded = isinstance(parse_url(bus.settings.url), SqliteUrl)
    if listen is None:
        return Access(or_any=True) if embedded else None
    if not embedded:
        raise CommandError(
            "the page of a bus on RabbitMQ is served by a router",
            code=Exit.USAGE,
            advice=f"signalbus router --store ledger.db --listen {listen}",
        )
    return Access.read(listen)


async def _serve(
    bus: Bus,
    output: Output,
    *,
    reload_since: int | None,
    supervised: bool,
    access: Access | None,
    as_json: bool,
) -> Ending:
    """Open the bus, serve until something ends it, drain."""
    ending = _Ending(bus, output)
    ending.listen()
    if supervised:
        watch_parent(lambda: ending.set(Ending.ASKED, "the parent process is gone"))
    opening = asyncio.ensure_future(bus.open())
    watching = None if reload_since is None else asyncio.ensure_future(ending.wait_reload(reload_since))
    stopping = asyncio.ensure_future(ending.event.wait())
    failing = asyncio.ensure_future(bus.wait_failed())
    try:
        await asyncio.wait([opening, stopping], return_when=asyncio.FIRST_COMPLETED)
        if opening.done():
            await opening
            async with _page(bus, access) as page:
                _tell(bus, "serving", output, page=page, as_json=as_json)
                await asyncio.wait([stopping, failing], return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            await failing
        return ending.why
    finally:
        for task in (opening, watching, stopping, failing):
            if task is not None and not task.done():
                task.cancel()
                await asyncio.wait([task])
        await bus.aclose()
        _tell(bus, "stopped", output, as_json=as_json)


@asynccontextmanager
async def _page(bus: Bus, access: Access | None) -> AsyncGenerator[str | None]:
    """Serve the page, if there is to be one, and yield its address."""
    if access is None:
        yield None
        return
    async with window_on(bus, access, LOOK_SECONDS) as url:
        yield url


class _Ending:
    """Collects the wishes to end; a second signal ends the process."""

    def __init__(self, bus: Bus, output: Output) -> None:
        self.event = asyncio.Event()
        self.why = Ending.ASKED
        self._bus = bus
        self._output = output
        self._signalled = False

    def listen(self) -> None:
        """Take SIGINT and SIGTERM from here on, to the end of the process."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._signal, number)

    def set(self, why: Ending, reason: str) -> None:
        """Begin to end, once."""
        if self.event.is_set():
            return
        running = sum(stats.in_flight for stats in self._bus.stats().subscriptions.values())
        grace = self._bus.settings.drain_timeout
        self._output.note(
            f"signalbus: {reason}; {running} handlers have up to {grace:g} s to end (a second signal stops now)"
        )
        self.why = why
        self.event.set()

    async def wait_reload(self, begun: int) -> None:
        """End when a source file has changed since ``begun``."""
        changed = await wait_changed(watched_files(), begun)
        self.set(Ending.RELOAD, f"{changed} changed")

    def _signal(self, number: int) -> None:
        if self._signalled:
            stop_now(number)
        self._signalled = True
        self.set(Ending.ASKED, signal.Signals(number).name)


def _tell(bus: Bus, what: str, output: Output, *, page: str | None = None, as_json: bool) -> None:
    subscriptions = {subscription.name: list(subscription.patterns) for subscription in bus.subscriptions()}
    if as_json:
        output.json(happened=what, pid=os.getpid(), subscriptions=subscriptions, page=page)
        return
    names = ", ".join(f"{name} ({' '.join(patterns)})" for name, patterns in subscriptions.items())
    output.note(f"signalbus: {what} {names or 'no subscriptions'} at {bus!r}, pid {os.getpid()}")
    if page is not None:
        output.note(f"signalbus: look at it: {page}")


def _wait_for_better(error: BaseException, begun: int, output: Output) -> int:
    """The module cannot be imported: say why, and start again when a file changes."""
    for line in "".join(traceback.format_exception(error)).splitlines():
        output.warn(escape(line))
    files = watched_files() | files_of(error)
    output.note("signalbus: waiting for a change")
    asyncio.run(wait_changed(files, begun))
    _start_again()
    return Exit.FAILED


def _start_again() -> None:
    """Become a new process with the same id: the only reload that forgets everything."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606
