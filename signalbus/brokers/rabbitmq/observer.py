"""Watching other sessions: the news that the broker sends, and a look at the broker when news may have been missed.

Only what is gone at the broker is reported. So an observer that was stopped or cut off declares nobody dead who lives.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable

from aiormq.abc import AbstractChannel

from ...errors import BrokerError, BrokerUnavailable, ConfigError
from ...sessions import Down, DownReason
from ...signals import utc_now
from . import notes
from .connection import Link
from .control import Control, apply, opened
from .driver import DriverFailure
from .inbox import Inbox
from .lane import Received
from .notes import Note
from .roll_call import RollCall
from .roster import Roster
from .topology import Topology

log = logging.getLogger(__name__)

SWEEP_SECONDS = 10.0
RETRY_SECONDS = 0.5
BIND_PAUSE = 0.05
CHECK_SECONDS = 10.0

Ended = Callable[[Down], None]


class Observer:
    """Watches sessions, from the first question on. ``own`` tells which ids are ours."""

    def __init__(
        self,
        topology: Topology,
        link: Link,
        control: Control,
        inbox: Inbox,
        roster: Roster,
        roll_call: RollCall,
        counters: Counter[str],
        own: Callable[[str], bool],
    ) -> None:
        self._topology = topology
        self._link = link
        self._control = control
        self._inbox = inbox
        self._roster = roster
        self._roll_call = roll_call
        self._counters = counters
        self._own = own
        self._active = False
        self._bound = ""  # the inbox that gets the news
        self._binding = asyncio.Lock()
        self._watched: dict[str, list[asyncio.Future[Down]]] = {}
        self._listeners: list[Ended] = []
        self._parts: list[Ended] = []
        self._doubts = asyncio.Event()  # news may have been missed
        inbox.on(Note.DOWN, self._on_down)
        inbox.on(Note.TOKEN, self._on_down)
        inbox.on(Note.UP, self._on_up)

    # Asked by the broker

    async def watch(self, session: str, deadline: float) -> asyncio.Future[Down]:
        """Return a future for the end of a session. Raises `BrokerUnavailable`."""
        await self.observe(deadline)
        # Registered before the look: an end between the two reaches it as news.
        future = self._register(session)
        try:
            gone = self._roster.has_ended(session) or await self._gone(
                session, deadline - asyncio.get_running_loop().time()
            )
        except BaseException:
            future.cancel()
            raise
        if gone:
            self._resolve(session, [future], Down(session=session, reason=DownReason.NOPROC, at=utc_now()))
        return future

    async def watch_all(self, ended: Ended, deadline: float) -> None:
        """Call ``ended`` for every end from now on. Raises `BrokerUnavailable`."""
        await self.observe(deadline)
        self._listeners.append(ended)
        try:
            # Who lives now has to be known, for the case that we are cut off. The ends are heard without it.
            async with asyncio.timeout_at(deadline):
                await self._roll_call.take()
        except (BrokerError, TimeoutError) as error:
            log.debug("who lives is asked again: %s", error)
            self.doubt()

    def listen(self, ended: Ended) -> None:
        """Call ``ended`` for every end that is observed. For parts of this broker: nothing is looked for."""
        self._parts.append(ended)

    async def observe(self, deadline: float) -> None:
        """Get news of the other sessions from now on. Raises `BrokerUnavailable`."""
        self._active = True
        if self.observing:
            return
        try:
            async with asyncio.timeout_at(deadline), self._binding:
                while not self.observing:
                    await self._bind_again(deadline)
        except TimeoutError as error:
            raise BrokerUnavailable(self._link.trouble("sessions cannot be observed yet")) from error

    async def bind(self, channel: AbstractChannel, inbox: str) -> None:
        """Bring the news into a new inbox, if anybody wants them. Raises `DriverFailure`."""
        self._roster.complete = False
        if self._active:
            await apply(channel, self._topology.observing(inbox))
            self._bound = inbox
            self._doubts.set()

    def doubt(self) -> None:
        """Look at the broker soon: news may have been missed."""
        self._doubts.set()

    @property
    def observing(self) -> bool:
        """Whether the news reach us."""
        return bool(self._bound) and self._bound == self._inbox.queue

    async def run(self) -> None:
        """Look for ends that were missed: after each reconnection, and now and then, until cancelled."""
        while True:
            try:
                if await self._wait_doubts() or self._watched or self._listeners:
                    await self._compare()
            except (BrokerError, ConfigError) as error:
                log.debug("the sessions cannot be compared yet: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
                self._doubts.set()

    def aclose(self) -> None:
        """Cancel every watch."""
        self._listeners.clear()
        for futures in list(self._watched.values()):
            for future in list(futures):
                future.cancel()

    async def gone(self, session: str, timeout: float) -> bool:
        """Look whether a session has ended; if so, tell everybody. Raises `BrokerError`."""
        if not await self._gone(session, timeout):
            return False
        info = self._roster.living.get(session)
        name = info.name if info is not None else ""
        self._end(Down(session=session, reason=DownReason.CONNECTION_LOST, at=utc_now(), name=name))
        return True

    # News

    def _on_up(self, message: Received) -> None:
        self._roster.lives(notes.read_up(message))

    def _on_down(self, message: Received) -> None:
        self._end(notes.read_down(message))

    def _end(self, down: Down) -> None:
        news = self._roster.ended(down.session)
        self._resolve(down.session, self._watched.get(down.session, []), down)
        if not news:
            return
        self._counters["downs"] += 1
        listeners = [] if self._own(down.session) else self._listeners
        for ended in [*self._parts, *listeners]:
            ended(down)

    def _resolve(self, session: str, futures: list[asyncio.Future[Down]], down: Down) -> None:
        for future in list(futures):
            if not future.done():
                future.set_result(down)

    def _register(self, session: str) -> asyncio.Future[Down]:
        future: asyncio.Future[Down] = asyncio.get_running_loop().create_future()
        self._watched.setdefault(session, []).append(future)

        def forget(future: asyncio.Future[Down]) -> None:
            futures = self._watched.get(session, [])
            if future in futures:
                futures.remove(future)
            if not futures:
                self._watched.pop(session, None)

        future.add_done_callback(forget)
        return future

    # Looks

    async def _wait_doubts(self) -> bool:
        """Wait for the time of a sweep; True if news may have been missed before it."""
        try:
            async with asyncio.timeout(SWEEP_SECONDS):
                await self._doubts.wait()
        except TimeoutError:
            return False
        self._doubts.clear()
        return True

    async def _compare(self) -> None:
        """Find who ended unheard of: what no roll call finds is looked for by name."""
        suspects = {*self._watched, *self._roster.living}
        if not suspects:
            return
        found = await self._roll_call.take()
        for session in suspects - found.keys():
            if not self._roster.has_ended(session) or session in self._watched:
                await self.gone(session, CHECK_SECONDS)

    async def _gone(self, session: str, timeout: float) -> bool:
        counts = await self._control.counts(self._topology.lease(session), timeout)
        return counts is None or not counts.consumers

    async def _bind_again(self, deadline: float) -> None:
        inbox = self._inbox.queue
        try:
            connection = await self._link.wait_up(deadline)
            inbox = self._inbox.queue
            async with opened(connection) as channel:
                await apply(channel, self._topology.observing(inbox))
        except DriverFailure as failure:
            log.debug("not observing yet: %s", failure.reason)
            await asyncio.sleep(BIND_PAUSE)
            return
        if inbox:
            self._bound = inbox
