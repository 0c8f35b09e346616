"""The daemon: collects the facts of all buses into a store, with those of sessions that end, and forgets old ones.

Nothing depends on it: while it is away, facts wait at RabbitMQ, and signals do not. Several may run: one is active.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from ..brokers.base import BrokerState
from ..brokers.rabbitmq.broker import RabbitBroker
from ..brokers.rabbitmq.collector import Collector, CollectorState
from ..bus import Bus
from ..config import SqliteUrl, parse_url
from ..errors import BrokerError, BrokerUnavailable, ConfigError
from ..inspection import Inspection
from ..supervision import ChildInfo, ChildSpec, ChildState, Strategy, Supervisor
from ..trace.listing import Retention
from ..trace.reader import TraceReader
from ..web.access import Access
from ..web.window import as_child, make_window
from .ends import SessionEnds
from .letters import RouterLetters
from .store import RouterStore

log = logging.getLogger(__name__)

CHECK_SECONDS = 2.0  # between looks whether a store in trouble works again
PRUNE_SECONDS = 60.0  # between looks whether anything is too old
PIECE_SECONDS = 0.02  # between pieces, in which facts are stored
CLOSE_SECONDS = 5.0  # to stop, besides what draining takes


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterStatus:
    """What a router does now. ``troubles``: what keeps it from its work, one sentence each."""

    role: CollectorState
    troubles: tuple[str, ...]
    children: tuple[ChildInfo, ...]
    facts_collected: int


class Router:
    """See the module. ``bus`` is not yet open; `serve` opens it, and `ready` is set once facts are collected.

    ``access``: where it serves its API and page, and for whom; None: nowhere. ``beside``: further children, started
    last and stopped first.
    """

    def __init__(
        self,
        bus: Bus,
        store: Path,
        retention: Retention,
        *,
        access: Access | None = None,
        beside: Sequence[ChildSpec] = (),
    ) -> None:
        """Raises `ConfigError` unless the bus is on RabbitMQ: the embedded broker keeps its ledger itself."""
        place = parse_url(bus.settings.url)
        if isinstance(place, SqliteUrl) or not isinstance(bus.broker, RabbitBroker):
            raise ConfigError(
                "the embedded broker keeps its ledger in its own file, so there is nothing to collect; "
                "look at it: signalbus trace list"
            )
        self.ready = asyncio.Event()
        self.bus = bus
        self.path = store
        self._broker = bus.broker
        self._store = RouterStore(store)
        self._retention = retention
        self._beside = beside
        self._new_role = asyncio.Event()
        self._collector: Collector | None = None
        self._ends = SessionEnds(self._store, lambda: self.role is CollectorState.ACTIVE, _now)
        self._supervisor: Supervisor | None = None
        self.letters = RouterLetters(bus.broker, self._store)
        self.letters.turn.clear()
        inspection = Inspection(bus=bus, traces=TraceReader(self._store), letters=self.letters, troubles=self.troubles)
        self._server = make_window(inspection, access) if access is not None else None

    @property
    def url(self) -> str | None:
        """Where its API and page are, once it is ready."""
        return self._server.url if self._server is not None else None

    @property
    def role(self) -> CollectorState:
        """Whether this router is the one that stores; none is while its store has trouble."""
        if self._collector is None or self._store.trouble:
            return CollectorState.AWAY
        return self._collector.state

    async def serve(self) -> None:
        """Collect until this is cancelled; then what was taken is stored and acknowledged, within ``drain_timeout``.

        Raises `ConfigError`, `StorageError`, `BrokerUnavailable` or `Escalated`. A store that is locked by another
        program, or that fails later on, is waited for: see `troubles`.
        """
        try:
            await self._open_store()
            async with self.bus:
                self._collector = self._broker.collector(self._store.append, self.bus.settings.drain_timeout)
                self._collector.changed = self._role_changed
                await self._broker.watch_all(self._ends.note, self.bus.settings.connect_timeout)
                children = self._children(self._collector)
                supervisor = Supervisor("router", children=children, strategy=Strategy.REST_FOR_ONE)
                async with supervisor:
                    self._supervisor = supervisor
                    self.ready.set()
                    await asyncio.Event().wait()
        finally:
            await self.letters.aclose()
            await asyncio.to_thread(self._store.close)

    def _children(self, collector: Collector) -> Sequence[ChildSpec]:
        """Return the parts in the order of their start: one that fails takes along those that come after it."""
        drain = timedelta(seconds=self.bus.settings.drain_timeout + CLOSE_SECONDS)
        opened = asyncio.Event()
        return (
            ChildSpec(name="store", start=lambda: self._keep_store(opened), ready=opened, stop_timeout=drain),
            ChildSpec(name="collect", start=collector.run, stop_timeout=drain),
            ChildSpec(name="ends of sessions", start=self._ends.run),
            ChildSpec(name="forget", start=self._forget),
            *self.letters.children(),
            *((as_child(self._server),) if self._server is not None else ()),
            *self._beside,
        )

    # Looking

    def status(self) -> RouterStatus:
        """Return what it does. Never blocks."""
        return RouterStatus(
            role=self.role,
            troubles=tuple(self.troubles()),
            children=self._supervisor.which_children() if self._supervisor is not None else (),
            facts_collected=self._broker.health().counters.get("facts_collected", 0),
        )

    def troubles(self) -> Sequence[str]:
        """Return what keeps it from its work now, one sentence each; none if all is well. Never blocks."""
        health = self._broker.health()
        broker = f"RabbitMQ: {health.state}, {health.reason}" if health.state is not BrokerState.UP else ""
        collecting = self._collector.trouble if self._collector is not None and not self._store.trouble else ""
        found = [each for each in (self._store.trouble, broker, collecting) if each]
        children = self._supervisor.which_children() if self._supervisor is not None else ()
        stopped = [child for child in children if child.state in (ChildState.STOPPED, ChildState.RESTARTING)]
        return [*found, *(f"{child.name} is {child.state}: {child.error}" for child in stopped)]

    async def next_role(self, known: CollectorState | None, settle_seconds: float) -> CollectorState:
        """Wait for another role than ``known``, that has lasted for a while unless it is to be active."""
        while True:
            self._new_role.clear()
            if (role := self.role) is not known:
                if role is CollectorState.ACTIVE or not await _set_within(self._new_role, settle_seconds):
                    return role
            else:
                await self._new_role.wait()

    def _role_changed(self) -> None:
        if self.role is CollectorState.ACTIVE:
            self.letters.turn.set()
        else:
            self.letters.turn.clear()
        self._ends.stir()
        self._new_role.set()

    # The parts

    async def _open_store(self) -> None:
        """Open the store, if another program does not hold it just now: it is tried again then."""
        try:
            await asyncio.to_thread(self._store.open)
        except BrokerUnavailable as error:
            log.warning("%s", error)

    async def _keep_store(self, opened: asyncio.Event) -> None:
        """Keep the store open, and see whether it is well again when it was not."""
        try:
            await self._quietly(self._store.open)
            opened.set()
            while True:
                before = self._store.trouble
                await asyncio.sleep(CHECK_SECONDS)
                if self._store.trouble:
                    await self._quietly(self._store.check)
                if self._store.trouble != before:
                    self._role_changed()
                self._ends.stir()  # trouble may have come and gone meanwhile
        finally:
            await asyncio.to_thread(self._store.close)

    async def _quietly(self, call: Callable[[], None]) -> None:
        """Call the store in a thread; what is wrong with it shows in `troubles`."""
        try:
            await asyncio.to_thread(call)
        except (BrokerError, ConfigError) as error:
            log.debug("the store has trouble: %s", error)

    async def _forget(self) -> None:
        """Forget what is too old, in small pieces, while it is up to us."""
        while True:
            more = self.role is CollectorState.ACTIVE and await self._pruned()
            await asyncio.sleep(PIECE_SECONDS if more else PRUNE_SECONDS)

    async def _pruned(self) -> bool:
        try:
            return await asyncio.to_thread(self._store.prune, self._retention)
        except BrokerError as error:
            log.warning("nothing is forgotten for now: %s", error)
            return False


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


def _now() -> float:
    return asyncio.get_running_loop().time()
