"""The daemon: collects the facts of all buses into a store, with those of sessions that end, and forgets old ones.

Nothing depends on it: while it is away, facts wait at RabbitMQ, and signals do not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from ..brokers.rabbitmq.broker import RabbitBroker
from ..bus import Bus
from ..config import SqliteUrl, parse_url
from ..errors import BrokerError, ConfigError
from ..ledger import Batch, Origin
from ..sessions import Down
from ..supervision import ChildSpec, Supervisor
from ..trace.listing import Retention
from ..trace.store import SqliteStore
from .letters import RouterLetters

log = logging.getLogger(__name__)

T = TypeVar("T")

AGAIN_SECONDS = 1.0  # before what the store could not do is tried again
PRUNE_SECONDS = 60.0  # between looks whether anything is too old
PIECE_SECONDS = 0.05  # between pieces, in which facts are stored
DOWNS = 10_000  # ends of sessions that wait to be stored, at most


class Router:
    """See the module. ``bus`` is not yet open; ``serve`` opens it."""

    def __init__(self, bus: Bus, store: Path, retention: Retention) -> None:
        """Raises `ConfigError` unless the bus is on RabbitMQ: the embedded broker keeps its ledger itself."""
        place = parse_url(bus.settings.url)
        if isinstance(place, SqliteUrl) or not isinstance(bus.broker, RabbitBroker):
            raise ConfigError(
                "the embedded broker keeps its ledger in its own file, so there is nothing to collect; "
                "look at it: signalbus trace list"
            )
        self._bus = bus
        self._broker = bus.broker
        self._path = store
        self._retention = retention
        self._ended: asyncio.Queue[Down] = asyncio.Queue(DOWNS)
        self.ready = asyncio.Event()  # facts are collected

    async def serve(self) -> None:
        """Collect until this is cancelled. Raises `ConfigError`, `StorageError`, `BrokerUnavailable` or `Escalated`."""
        store = await asyncio.to_thread(SqliteStore, self._path)
        try:
            letters = await asyncio.to_thread(RouterLetters, self._broker, self._path)
        except BaseException:
            await asyncio.to_thread(store.close)
            raise
        try:
            async with self._bus, Supervisor("router", children=(*self._children(store), *letters.children())):
                await self._broker.watch_all(self._note, self._bus.settings.connect_timeout)
                self.ready.set()
                await asyncio.Event().wait()
        finally:
            await letters.aclose()
            await asyncio.to_thread(store.close)

    def _children(self, store: SqliteStore) -> Sequence[ChildSpec]:
        return (
            ChildSpec(name="collect", start=lambda: self._broker.collect(store.append)),
            ChildSpec(name="ends of sessions", start=lambda: self._store_ends(store)),
            ChildSpec(name="forget", start=lambda: self._forget(store)),
        )

    def _note(self, down: Down) -> None:
        if not self._ended.full():
            self._ended.put_nowait(down)

    async def _store_ends(self, store: SqliteStore) -> None:
        while True:
            down = await self._ended.get()
            while not await _done(store.append, [_batch(down)]):  # noqa: ASYNC110 - a disk has no event
                await asyncio.sleep(AGAIN_SECONDS)

    async def _forget(self, store: SqliteStore) -> None:
        while True:
            more = await _done(store.prune, self._retention)
            await asyncio.sleep(PIECE_SECONDS if more else PRUNE_SECONDS)


async def _done(call: Callable[[T], object], argument: T) -> bool:
    """Call the store in a thread; return its answer, no if it has trouble, which is logged: another time, then."""
    try:
        return await asyncio.to_thread(call, argument) is not False
    except BrokerError as error:
        log.warning("the store has trouble: %s", error)
        return False


def _batch(down: Down) -> Batch:
    """Return the end of a session as a fact: the same one, whoever of several routers stores it."""
    row = ("session_down", down.at.timestamp(), down.session, down.reason.value, down.name, down.unsettled)
    return Batch(origin=Origin(recorder=f"end of {down.session}", session=down.session), first=1, rows=[row])
