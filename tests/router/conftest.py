"""Routers, in this process and in others, and facts for them."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import aiormq
import pytest
from aiormq.abc import AbstractChannel
from pamqp import commands

from signalbus import Bus
from signalbus.errors import BrokerError, ConfigError
from signalbus.ledger import Batch, Origin, encode
from signalbus.ledger.facts import Row
from signalbus.router.daemon import Router
from signalbus.signals import new_id
from signalbus.supervision import ChildSpec
from signalbus.trace.listing import Retention
from signalbus.trace.store import SqliteStore
from signalbus.web.access import Access
from tests.brokers.world import wait_until
from tests.cli.program import Running, environment, running

QUEUE = "signalbus.ledger"
KEEP = Retention(seconds=86_400.0)
FAST = "heartbeat=2&backoff_cap=1"
PER_SIGNAL = 3  # facts


class Teller:
    """Makes facts of signals that were published, delivered and acked; ``signals`` are the ids so far."""

    def __init__(self) -> None:
        self.signals: list[str] = []
        self._origin = Origin(recorder=new_id(), session=new_id(), name="shop", host="here", pid=1)
        self._next = itertools.count(1, PER_SIGNAL)

    def batch(self, signals: int = 80) -> Batch:
        """Return the facts of some more signals."""
        rows: list[Row] = []
        first = 0
        for _ in range(signals):
            signal, at, number = new_id(), time.time(), next(self._next)
            first = first or number
            self.signals.append(signal)
            about = (signal, "order.placed")
            rows += [
                ("accepted", at, *about, "shop", None, None, None, None, None, ["billing"]),
                ("delivered", at, *about, "billing", 1, 0, 0.001, None),
                ("acked", at, *about, "billing", 1, 0, 0.002),
            ]
        return Batch(origin=self._origin, first=first, rows=rows)

    @property
    def facts(self) -> int:
        """How many facts there are."""
        return PER_SIGNAL * len(self.signals)


class Ledger:
    """The queue of facts, over a foreign client's channel."""

    def __init__(self, channel: AbstractChannel) -> None:
        self._channel = channel

    async def put(self, *batches: Batch) -> None:
        """Put batches into it."""
        properties = commands.Basic.Properties(delivery_mode=2)
        for batch in batches:
            await self._channel.basic_publish(encode(batch), routing_key=QUEUE, properties=properties)

    async def depth(self) -> int:
        """Return how many messages nobody has taken."""
        return (await self._channel.queue_declare(QUEUE, passive=True)).message_count or 0

    async def is_empty(self) -> bool:
        """Whether everything was taken."""
        return await self.depth() == 0


@pytest.fixture
async def ledger(amqp_url: str) -> AsyncIterator[Ledger]:
    async with Bus(amqp_url, name="maker", ledger="off"):  # makes the queue
        pass
    async with aiormq.connect(amqp_url) as connection:
        yield Ledger(await connection.channel())


@asynccontextmanager
async def routing(
    url: str,
    path: Path,
    *,
    retention: Retention = KEEP,
    access: Access | None = None,
    beside: Sequence[ChildSpec] = (),
) -> AsyncIterator[Router]:
    """Run a router in this process; it has to end as it should."""
    bus = Bus(f"{url}?{FAST}", name="router", ledger="off", drain_timeout=10.0)
    router = Router(bus, path, retention, access=access, beside=beside)
    serving = asyncio.create_task(router.serve())
    ready = asyncio.create_task(router.ready.wait())
    await asyncio.wait((serving, ready), timeout=20, return_when=asyncio.FIRST_COMPLETED)
    ready.cancel()
    if serving.done():
        serving.result()
    try:
        yield router
        assert not serving.done(), serving
    finally:
        serving.cancel()
        await asyncio.wait([serving])
    assert serving.cancelled(), serving


@contextmanager
def router_process(url: str, directory: Path, name: str = "router", *words: str, **env: str) -> Iterator[Running]:
    """Run the program; all of a directory have the same store, ``ledger.db``."""
    variables = environment(f"{url}?{FAST}", SIGNALBUS_STORE="ledger.db", **env)
    with running("router", *words, cwd=directory, env=variables, name=name) as process:
        yield process


def lock_is_free(path: Path) -> bool:
    """Tell whether the lock of a store's writer can be had within half a second."""
    connection = sqlite3.connect(path, timeout=0.5, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite3.OperationalError:
        return False
    finally:
        connection.close()
    return True


async def stored(path: Path) -> int:
    """Return how many facts a store has; 0 if there is none yet."""

    def count() -> int:
        if not path.exists():
            return 0
        try:
            store = SqliteStore(path, read_only=True)
        except (ConfigError, BrokerError):
            return 0  # it is just being made
        try:
            return store.stats().facts
        finally:
            store.close()

    return await asyncio.to_thread(count)


async def wait_stored(path: Path, facts: int, timeout: float = 30.0) -> None:
    """Wait until so many facts are stored, and no more."""

    async def enough() -> bool:
        return await stored(path) >= facts

    await wait_until(enough, timeout, message=f"{facts} facts in {path}")
    assert await stored(path) == facts
