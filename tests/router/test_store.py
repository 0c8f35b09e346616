"""A store in trouble: delivery goes on, facts wait at RabbitMQ, the router says what is wrong and goes on by itself."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from signalbus import Bus
from signalbus.brokers.rabbitmq.collector import CollectorState
from signalbus.errors import BrokerUnavailable, ConfigError, StorageError
from signalbus.ledger import Batch
from signalbus.router import store as stores
from signalbus.router.daemon import Router
from signalbus.router.store import RouterStore
from signalbus.trace.store import SqliteStore
from tests.brokers.world import wait_until
from tests.disks import KIB, fill
from tests.router.conftest import KEEP, Ledger, Teller, routing, wait_stored
from tests.support import eventually

GARBAGE = b"this is no database\n" * KIB


async def delivered(url: str) -> None:
    """Publish, and wait until it is acked: what a bus without a ledger does is the same."""
    bus = Bus(url, name="shop", ledger="off")

    async def handle(data: dict[str, object]) -> None: ...

    bus.subscribe("order.*", handler=handle, name="billing")
    async with bus:
        receipt = await bus.publish("order.placed", {"n": 1}, until="acked", timeout=20)
    assert receipt.subscriptions is not None


async def troubled(router: Router, says: str) -> None:
    await eventually(lambda: any(says in trouble for trouble in router.troubles()), 20, message=f"{router.troubles()}")


async def well(router: Router) -> None:
    await eventually(lambda: router.troubles() == [] and router.role is CollectorState.ACTIVE, 30)


# With a router


@pytest.mark.rabbitmq
async def test_a_locked_store_is_waited_for(
    amqp_url: str, tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "BUSY_SECONDS", 0.3)
    path, teller = tmp_path / "ledger.db", Teller()
    async with routing(amqp_url, path) as router:
        await ledger.put(teller.batch())
        await wait_stored(path, teller.facts)
        before = teller.facts
        await eventually(lambda: router.status().facts_collected == before)  # known a moment after it is stored
        holder = sqlite3.connect(path, isolation_level=None)
        try:
            holder.execute("BEGIN EXCLUSIVE")
            await ledger.put(teller.batch())
            await troubled(router, "another program holds the file")
            await delivered(amqp_url)
            assert router.status().facts_collected == before
            holder.execute("ROLLBACK")
        finally:
            holder.close()
        await wait_stored(path, teller.facts)
        await well(router)
        assert all(child.restarts == 0 for child in router.status().children)


@pytest.mark.rabbitmq
async def test_a_store_that_is_locked_at_the_start_is_waited_for(
    amqp_url: str, tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "BUSY_SECONDS", 0.3)
    path, teller = tmp_path / "ledger.db", Teller()
    await asyncio.to_thread(lambda: SqliteStore(path).close())
    holder = sqlite3.connect(path, isolation_level=None)
    try:
        holder.execute("PRAGMA locking_mode = EXCLUSIVE")
        holder.execute("BEGIN EXCLUSIVE")
        async with routing(amqp_url, path) as router:
            await ledger.put(teller.batch())
            await troubled(router, "another program holds the file")
            holder.close()
            await wait_stored(path, teller.facts)
            await well(router)
    finally:
        holder.close()


@pytest.mark.rabbitmq
async def test_a_full_disk_is_waited_for(amqp_url: str, small_disk: Path, ledger: Ledger) -> None:
    path, teller = small_disk / "ledger.db", Teller()
    async with routing(amqp_url, path) as router:
        await ledger.put(teller.batch())
        await wait_stored(path, teller.facts)
        filler = fill(small_disk)
        for _ in range(20):
            await ledger.put(teller.batch())
        await troubled(router, "make room on the disk")
        await delivered(amqp_url)
        filler.unlink()
        await wait_stored(path, teller.facts)
        await wait_until(ledger.is_empty)
        await well(router)
        assert all(child.restarts == 0 for child in router.status().children)


@pytest.mark.rabbitmq
async def test_a_damaged_store_is_told_with_what_to_do_and_a_new_one_is_made_then(
    amqp_url: str, tmp_path: Path, ledger: Ledger
) -> None:
    path, teller = tmp_path / "ledger.db", Teller()
    async with routing(amqp_url, path) as router:
        await ledger.put(teller.batch())
        await wait_stored(path, teller.facts)
        garbage = tmp_path / "garbage"
        garbage.write_bytes(GARBAGE)
        garbage.replace(path)  # what was stored is still in the file that has no name any more
        later = Teller()
        await ledger.put(later.batch())
        await troubled(router, "move it away")
        await delivered(amqp_url)
        assert path.read_bytes() == GARBAGE  # nothing is written into what is not ours
        path.unlink()
        await wait_stored(path, later.facts)
        await well(router)
        assert all(child.restarts == 0 for child in router.status().children)


@pytest.mark.rabbitmq
async def test_a_router_does_not_begin_with_a_damaged_store_or_that_of_another_program(
    amqp_url: str, tmp_path: Path
) -> None:
    (tmp_path / "garbage.db").write_bytes(GARBAGE)
    with pytest.raises(StorageError, match="move it away"):
        async with routing(amqp_url, tmp_path / "garbage.db"):
            pass
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE orders (id)")
    other.close()
    with pytest.raises(ConfigError, match="another program"):
        async with routing(amqp_url, tmp_path / "other.db"):
            pass


@pytest.mark.rabbitmq
async def test_a_batch_that_comes_twice_is_stored_once(amqp_url: str, tmp_path: Path, ledger: Ledger) -> None:
    path, teller = tmp_path / "ledger.db", Teller()
    first, second = teller.batch(), teller.batch()
    await ledger.put(first, second, first, second, second)
    async with routing(amqp_url, path) as router:
        await wait_until(ledger.is_empty)
        await eventually(lambda: router.status().facts_collected == 2 * teller.facts + len(second.rows))
        await wait_stored(path, teller.facts)


# Alone


def test_flipped_bytes_are_told_and_harm_nothing_else(tmp_path: Path) -> None:
    path, teller = tmp_path / "ledger.db", Teller()
    store = RouterStore(path)
    store.open()
    for _ in range(20):
        store.append([teller.batch()])
    store.close()
    damaged = bytearray(path.read_bytes())
    for page in range(2, len(damaged) // 4_096):
        damaged[page * 4_096 : page * 4_096 + 64] = b"\xa5" * 64
    path.write_bytes(damaged)
    try:
        with pytest.raises(StorageError, match="move it away"):
            _use(store, teller.batch())
        assert "move it away" in store.trouble
        for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm"):
            (tmp_path / name).unlink(missing_ok=True)
        assert store.append([teller.batch()]) == 240
        assert store.trouble == ""
    finally:
        store.close()


def _use(store: RouterStore, batch: Batch) -> None:
    """Open and append: whichever reads a damaged page first finds it."""
    store.open()
    store.append([batch])


def test_a_store_that_was_moved_away_is_made_anew_and_the_old_one_is_whole(tmp_path: Path) -> None:
    path, moved, teller = tmp_path / "ledger.db", tmp_path / "old.db", Teller()
    store = RouterStore(path)
    store.open()
    try:
        store.append([teller.batch()])
        path.rename(moved)
        assert store.append([teller.batch()]) == 240
        assert store.trouble == ""
    finally:
        store.close()
    for each in (path, moved):
        read = SqliteStore(each, read_only=True)
        assert read.stats().facts == 240
        read.close()


def test_a_closed_store_says_so_and_can_be_opened_again(tmp_path: Path) -> None:
    store = RouterStore(tmp_path / "ledger.db")
    with pytest.raises(BrokerUnavailable, match="not open"):
        store.append([])
    for facts in (240, 480):
        store.open()
        store.open()
        opened = store._store
        assert store.append([Teller().batch()]) == 240
        assert store._store is opened  # nothing was taken for moved
        store.close()
        store.close()
        read = SqliteStore(tmp_path / "ledger.db", read_only=True)
        assert read.stats().facts == facts
        read.close()


async def test_a_router_needs_a_broker_that_keeps_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to collect"):
        Router(Bus(f"sqlite:///{tmp_path}/bus.db"), tmp_path / "ledger.db", KEEP)
