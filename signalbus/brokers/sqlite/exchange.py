"""Requests, messages and the roll call: what sessions say to each other directly, past the database.

The database only tells who is there. Everything travels over the sockets beside the sessions' lock files, and the
kernel ends a connection with its process: nobody waits for the dead.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import time
from collections.abc import Sequence

from ...codec import EncodedSignal
from ...errors import BrokerError, BrokerUnavailable, ConfigError, StorageError
from ..base import Answer, Host, SessionStatus
from . import roll
from .desk import Desk, Duty
from .directory import Directory, Listing, read_listing
from .errands import Errands
from .lines import Listener
from .operations import Dismiss, Look, Respond
from .reception import Reception
from .requester import Requester
from .responder import SqliteResponder
from .sessions import is_alive

_LOOK_SECONDS = 10.0  # for the database to say who is there; whoever asks has a deadline of its own


class Exchange:
    """See the module. ``end`` is the bound socket that others reach us at, None where there can be none."""

    def __init__(self, errands: Errands, desk: Desk, host: Host | None, end: socket.socket | None) -> None:
        self._errands = errands
        self._desk = desk
        self._directory = Directory(self._read_listing, desk.counters)
        self._requester = Requester(self._directory, desk.counters)
        self._reception = Reception(host)
        self._listener: Listener | None = None
        self.session_id = desk.info.id
        if end is not None:
            take, closed = self._reception.take, self._reception.closed
            self._listener = Listener(end, desk.address, take, closed, desk.counters)

    async def request(self, request: EncodedSignal, timeout: float) -> Answer:
        """See `Broker.request`."""
        return await self._requester.request(request, timeout)

    async def respond(self, request_type: str, concurrency: int, backlog: int, timeout: float) -> SqliteResponder:
        """See `Broker.respond`."""
        if concurrency < 1 or backlog < 0:
            raise ConfigError(f"concurrency is {concurrency}, at least 1; backlog is {backlog}, at least 0")
        if self._listener is None:
            raise StorageError(
                f"no socket can be made in {self._desk.files.sessions}, so requests cannot reach this process; "
                "put the database on another file system"
            )
        responder = SqliteResponder(self, request_type, concurrency, backlog)
        self._reception.add(responder)
        try:
            deadline = time.monotonic() + timeout
            await self._errands.ask(Respond(self._errands.future(), deadline, responder.duty))
        except (BrokerError, asyncio.CancelledError):
            # It may be registered all the same, a moment later: then requests would wait here for nobody.
            self._errands.later(responder.aclose())
            raise
        return responder

    async def send(self, session: str, message: bytes) -> None:
        """See `Broker.send`."""
        if session == self.session_id:
            self._reception.take_message(message)
            return
        post = await self._requester.tell(session, message)
        if post is not None and await asyncio.to_thread(is_alive, self._desk.files.sessions, post.token):
            raise BrokerUnavailable(f"session {session} lives, but cannot be reached: its socket is gone")

    async def sessions(self, timeout: float) -> Sequence[SessionStatus]:
        """See `Broker.sessions`."""
        directory = self._desk.files.sessions
        look = functools.partial(roll.living, directory=directory)
        rows = await self._errands.ask(Look(self._errands.future(), time.monotonic() + timeout, look))
        ours = self.session_id, self._reception.report()
        return await roll.call_roll(rows, directory, ours, self._requester.ask, timeout)

    def restore(self) -> None:
        """Be reachable again, as somebody removed our socket."""
        if self._listener is not None:
            self._listener.restore()

    async def aclose(self) -> None:
        """Answer what waits, here and there, and close all connections."""
        self._reception.close()
        await self._requester.aclose()
        if self._listener is not None:
            await self._listener.aclose()

    def forget(self) -> None:
        """Close what would be open for ever, as there is no event loop any more."""
        self._requester.forget()
        if self._listener is not None:
            self._listener.forget()

    async def wait_idle(self) -> None:
        """Wait for the end of what was still asked of the database, once that is closed."""
        await self._directory.wait_idle()

    # What responders need

    async def dismiss(self, duty: Duty) -> None:
        """Have no more requests sent to us for this duty."""
        await self._errands.finish(Dismiss(self._errands.future(), duty))

    def leave(self, responder: SqliteResponder) -> None:
        """Hand no more requests to this responder."""
        self._reception.remove(responder)

    async def _read_listing(self, known: int) -> Listing | None:
        read = functools.partial(read_listing, known=known)
        return await self._errands.ask(Look(self._errands.future(), time.monotonic() + _LOOK_SECONDS, read))
