"""This session among the others: its incarnations, one after the other, as long as the bus is open.

What keeps a session alive is on the consuming connection: it is declared dead exactly when its deliveries go back.
Tokens are published on the other one, as a connection that publishes is not read any more during an alarm.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiormq.abc import AbstractChannel, AbstractConnection
from pamqp import commands

from ...errors import BrokerError
from ...sessions import DownReason, SessionInfo
from ..base import Host, PublishResult
from . import notes
from .connection import Backoff, Link
from .control import apply, opened
from .deliveries import consume
from .driver import ACCESS_REFUSED, PRECONDITION_FAILED, REFUSALS, DriverFailure, call, close_quietly, on_closed
from .inbox import Inbox
from .lease import Lease
from .notes import Note
from .post import Post
from .tasks import end
from .topology import MAX_QUEUE_BYTES, Topology

log = logging.getLogger(__name__)

STEP_SECONDS = 10.0
TOKEN_SECONDS = 2.0
CHECK_SECONDS = 2.0  # between looks at what we hold unsettled
LEAVE_SECONDS = 2.0
FIRST_PAUSE = 0.1

Bind = Callable[[AbstractChannel, str], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What every incarnation needs. ``bind`` brings news of others into a new inbox."""

    topology: Topology
    link: Link
    post: Post
    inbox: Inbox
    counters: Counter[str]
    bind: Bind
    unsettled: Callable[[], int]
    changed: Callable[[], None]
    renewal: float  # seconds that a token is held at most; RabbitMQ closes a channel after 30 minutes
    backoff_cap: float


class Stay:
    """One incarnation at the broker: a channel with inbox and lease. Whichever is lost ends it."""

    def __init__(self, info: SessionInfo, channel: AbstractChannel, around: Surroundings) -> None:
        self.info = info
        self.channel = channel
        self.ended = asyncio.Event()
        self.reason = ""
        self._around = around
        self.lease = Lease(channel, around.topology.lease(info.id), around.post, around.counters, self.end)
        # Callbacks that call the driver would stop its reader for ever; these only note what happened.
        on_closed(channel, self._on_closed)
        channel.on_consumer_cancel_callbacks.add(self._on_cancelled)

    @property
    def inbox(self) -> str:
        """The queue of messages to this incarnation."""
        return self._around.topology.inbox(self.info.id)

    @property
    def presence(self) -> str:
        """The queue that answers roll calls for it."""
        topology = self._around.topology
        room = MAX_QUEUE_BYTES - len(topology.presence(self.info.id, ""))
        return topology.presence(self.info.id, notes.compact(self.info, room))

    async def enter(self) -> None:
        """Make everything that others see of it. Raises `DriverFailure`."""
        around = self._around
        await apply(self.channel, around.topology.meeting())
        info = self.presence.rpartition(".")[2]
        await apply(self.channel, around.topology.session(self.info.id, info))
        await around.bind(self.channel, self.inbox)
        await consume(self.channel, self.inbox, around.inbox.take, no_ack=True)
        await self.lease.start()
        await apply(self.channel, around.topology.answering(self.info.id, info))

    def end(self, reason: str) -> None:
        """Give this incarnation up."""
        if not self.reason:
            self.reason = reason
        self.ended.set()

    def _on_closed(self, failure: DriverFailure) -> None:
        self.lease.kill()
        self.end(f"its channel was closed: {failure.reason}")

    def _on_cancelled(self, frame: commands.Basic.Cancel) -> None:
        self.end("the broker cancelled a consumer: its lease or inbox is gone")


class Membership:
    """Keeps this session alive to others. ``held`` is set while it holds a lease."""

    def __init__(self, around: Surroundings) -> None:
        self.refused: str | None = None  # what the broker refuses us, while it does
        self.held = asyncio.Event()
        self._around = around
        self._info: SessionInfo | None = None
        self._host: Host | None = None
        self._used = False  # others may have seen the present incarnation
        self._stay: Stay | None = None
        self._entered = asyncio.Event()
        self._entering = asyncio.Lock()
        self._leaving = asyncio.Event()
        self._renewing = asyncio.Lock()
        self._backoff = Backoff(FIRST_PAUSE, around.backoff_cap)

    @property
    def info(self) -> SessionInfo:
        """The present incarnation."""
        assert self._info is not None
        return self._info

    @property
    def host(self) -> Host | None:
        """The bus, if there is one."""
        return self._host

    def begin(self, info: SessionInfo, host: Host | None) -> None:
        """Be this session, from the first connection on."""
        self._info, self._host = info, host

    async def prepare(self, connection: AbstractConnection) -> None:
        """Enter on a new connection, before anybody consumes on it. Raises `DriverFailure`, unless refused."""
        async with self._entering:
            await self._enter(connection)

    async def run(self) -> None:
        """Hold the lease of each incarnation, and enter again when one is lost, until cancelled."""
        clock = asyncio.get_running_loop().time
        while not self._leaving.is_set():
            stay = await self._present()
            self._backoff.began(clock())
            await self._hold_until_ended(stay)
            self._backoff.ended(clock())
            if self._leaving.is_set():
                return
            self.held.clear()
            if self._stay is stay:  # else the next connection has prepared another one already
                self._entered.clear()
            log.warning("session %s is not alive to others any more: %s", stay.info.id, stay.reason)
            self._around.counters["leases_lost"] += 1
            await self._reenter(stay)

    async def leave(self, reason: DownReason) -> None:
        """Say goodbye and let the lease go. Bounded, never raises."""
        self._leaving.set()
        stay = self._stay
        if stay is None or stay.ended.is_set():
            return
        try:
            # A token that is underway would find nobody, and tell before us.
            async with asyncio.timeout(LEAVE_SECONDS), self._renewing:
                await self._say_goodbye(stay, reason)
        except TimeoutError:
            log.warning("session %s ends without a last word: the broker does not answer in time", stay.info.id)

    async def _say_goodbye(self, stay: Stay, reason: DownReason) -> None:
        # Before the last word: whoever looks after that would find us alive, and hear nothing any more.
        await stay.lease.stop(LEAVE_SECONDS)
        body = notes.write_goodbye(stay.info, reason, unsettled=0)
        if not await self._announce(f"down.{stay.info.id}", Note.DOWN, body, LEAVE_SECONDS):
            return  # nobody was told: the token will tell when the connection ends
        await stay.lease.release(LEAVE_SECONDS)
        await close_quietly(stay.channel.queue_delete(stay.lease.queue), LEAVE_SECONDS)

    # Steps

    async def _enter(self, connection: AbstractConnection) -> None:
        if self._used:
            self._info = self.info.next()
        channel = await call(connection.channel(publisher_confirms=False), STEP_SECONDS)
        stay = Stay(self.info, channel, self._around)
        self._around.inbox.queue = stay.inbox
        try:
            await stay.enter()
        except DriverFailure as failure:
            self._used = self._used or failure.code not in (ACCESS_REFUSED, PRECONDITION_FAILED)
            if failure.code not in REFUSALS:
                raise
            self.refused = failure.reason
            self._around.changed()
            log.error("RabbitMQ refuses this session its lease or inbox: %s", failure.reason)
            return  # the refusal has closed the channel
        self._used = True
        self.refused = None
        self._stay = stay
        self._entered.set()

    async def _present(self) -> Stay:
        """Wait until we have entered; try again what was refused."""
        while True:
            try:
                async with asyncio.timeout(max(self._around.backoff_cap / 2, FIRST_PAUSE)):
                    await self._entered.wait()
            except TimeoutError:
                if self.refused is not None and (connection := self._around.link.connection) is not None:
                    await self._again(connection)
                continue
            assert self._stay is not None
            return self._stay

    async def _hold_until_ended(self, stay: Stay) -> None:
        """Hold the lease until the incarnation ends; then wait for nothing that belongs to it."""
        holding = asyncio.create_task(self._hold(stay))
        ended = asyncio.create_task(stay.ended.wait())
        try:
            await asyncio.wait((holding, ended), return_when=asyncio.FIRST_COMPLETED)
            if holding.done():
                holding.result()  # raises what went wrong: a bug of ours
        finally:
            await end(holding)
            await end(ended)

    async def _hold(self, stay: Stay) -> None:
        """Hold the lease, and renew it."""
        around, clock = self._around, asyncio.get_running_loop().time
        known, renewed = -1, 0.0
        while not stay.ended.is_set():
            unsettled = around.unsettled()
            if unsettled != known or clock() - renewed >= around.renewal:
                first = not stay.lease.held
                if await self._renew(stay, unsettled):
                    known, renewed = unsettled, clock()
                    if first:
                        await self._live(stay)
                around.changed()
            await _wait(stay.ended, CHECK_SECONDS if stay.lease.held else FIRST_PAUSE)

    async def _renew(self, stay: Stay, unsettled: int) -> bool:
        async with self._renewing:
            if self._leaving.is_set():
                return False
            return await stay.lease.renew(notes.write_token(stay.info, unsettled), TOKEN_SECONDS)

    async def _live(self, stay: Stay) -> None:
        """Tell others that we live."""
        await self._announce(f"up.{stay.info.id}", Note.UP, notes.write_token(stay.info, 0), TOKEN_SECONDS)
        if stay.ended.is_set():
            return
        if stay.info.incarnation > 1 and self._host is not None:
            self._host.renewed(stay.info)  # only now: who is told its id may watch it
        self.held.set()

    async def _reenter(self, stay: Stay) -> None:
        """Enter again on the same connection, if that still stands."""
        connection = stay.channel.connection
        if connection is not self._around.link.connection:
            return  # the next one prepares us
        if not stay.channel.is_closed:
            await close_quietly(stay.channel.close())
        # Its lease tells the same, unless somebody deleted it.
        body = notes.write_goodbye(stay.info, DownReason.CONNECTION_LOST, unsettled=None)
        await self._announce(f"down.{stay.info.id}", Note.DOWN, body, TOKEN_SECONDS)
        await asyncio.sleep(self._backoff.next())
        if connection is self._around.link.connection:
            await self._again(connection, stay)

    async def _again(self, connection: AbstractConnection, stay: Stay | None = None) -> None:
        async with self._entering:
            if connection is not self._around.link.connection:
                return
            try:
                if stay is not None:
                    await self._remove(connection, stay)
                await self._enter(connection)
            except DriverFailure as failure:
                # Sound or not, a connection without a lease serves nobody: the next one enters afresh.
                self._around.link.suspect(connection, DriverFailure(failure.reason))

    async def _remove(self, connection: AbstractConnection, stay: Stay) -> None:
        async with opened(connection) as channel:
            for queue in (stay.inbox, stay.presence):
                await call(channel.queue_delete(queue), STEP_SECONDS)

    async def _announce(self, key: str, kind: Note, body: bytes, timeout: float) -> bool:
        """Tell those who observe. What does not arrive they find out for themselves, later."""
        try:
            outcome = await self._around.post.send(self._around.topology.sessions, key, kind, body, timeout)
        except BrokerError as error:
            log.debug("%s could not be announced: %s", key, error)
            return False
        return outcome.result in (PublishResult.CONFIRMED, PublishResult.RETURNED)


async def _wait(event: asyncio.Event, timeout: float) -> None:
    try:
        async with asyncio.timeout(timeout):
            await event.wait()
    except TimeoutError:
        pass
