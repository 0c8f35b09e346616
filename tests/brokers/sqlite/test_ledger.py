"""Facts in the file of the embedded broker: stored beside signals, filed in idle time, and in nobody's way."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager

import pytest

from signalbus.brokers.sqlite import SqliteBroker, facts, filing, spool
from signalbus.delivery import ACK
from signalbus.ledger import Batch, Origin
from signalbus.ledger.facts import Row
from signalbus.trace.listing import Query
from signalbus.trace.model import State
from signalbus.trace.reader import TraceReader
from tests.brokers.sqlite.support import SECONDS, Place, data_of, receive, results, signal, wait_until
from tests.support import eventually

ORIGIN = Origin(recorder="r", session="s", name="shop", host="h", pid=1)


def accepted(number: int, at: float | None = None) -> Row:
    when = time.time() if at is None else at
    return ("accepted", when, f"signal-{number}", "order.placed", "shop", None, None, None, None, None, ("work",))


def batch(*numbers: int, at: float | None = None) -> Batch:
    return Batch(origin=ORIGIN, first=1 + numbers[0], rows=[accepted(number, at) for number in numbers])


@contextmanager
def looking(place: Place) -> Iterator[sqlite3.Connection]:
    """Look into the file while it is open; read only, so nothing is copied or removed at the end."""
    with closing(sqlite3.connect(f"{place.path.as_uri()}?mode=ro", uri=True)) as connection:
        yield connection


def count(place: Place, table: str) -> int:
    with looking(place) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


@asynccontextmanager
async def traces_of(broker: SqliteBroker) -> AsyncIterator[TraceReader]:
    async with await broker.traces(SECONDS) as traces:
        yield traces


async def listed(broker: SqliteBroker) -> list[str]:
    async with traces_of(broker) as traces:
        return [each.signal.id for each in (await traces.page(Query())).signals]


async def test_facts_share_the_transactions_of_signals(place: Place) -> None:
    broker, _ = await place.serving()
    before = broker.health().counters["transactions"]
    publishing = broker.publish([signal()], SECONDS)
    broker.append([batch(1, 2)])
    assert results(await publishing) == ["confirmed"]
    assert broker.health().counters["transactions"] <= before + 2
    await eventually(lambda: count(place, "ledger_spool") + count(place, "ledger_signals") > 0)


async def test_facts_are_filed_when_there_is_nothing_else_to_do(place: Place) -> None:
    broker, _ = await place.serving()
    broker.append([batch(1, 2), batch(3)])
    await eventually(lambda: count(place, "ledger_signals") == 3)
    assert count(place, "ledger_spool") == 0
    assert await listed(broker) == ["signal-3", "signal-2", "signal-1"]


async def test_what_nobody_filed_yet_is_filed_before_it_is_asked_for(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filing.Filing, "tick", lambda self: False)
    broker, _ = await place.serving()
    broker.append([batch(number) for number in range(30)])
    await eventually(lambda: count(place, "ledger_spool") == 30)
    assert len(await listed(broker)) == 30
    assert count(place, "ledger_spool") == 0


async def test_facts_of_a_bus_that_ends_are_stored_and_filed_by_another(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = await place.serving()
    first.append([batch(1)])
    await first.aclose()
    second = await place.open()
    await eventually(lambda: count(place, "ledger_signals") == 1)
    assert await listed(second) == ["signal-1"]


async def test_a_confirmed_publish_says_where_it_went(place: Place) -> None:
    broker, _ = await place.serving()
    [outcome] = await broker.publish([signal()], SECONDS)
    assert outcome.subscriptions == ("work",)
    batch_outcomes = await broker.publish([signal(), signal(type="nobody.cares")], SECONDS)
    assert [each.subscriptions for each in batch_outcomes] == [("work",), None]


async def test_delivery_goes_on_when_the_spool_is_damaged(place: Place) -> None:
    broker, _ = await place.serving()
    await broker.aclose()
    with place.raw() as connection:
        connection.execute("DROP TABLE ledger_spool")
    broker, consumer = await place.serving()
    broker.append([batch(1, 2)])
    assert results(await broker.publish([signal("kept")], SECONDS)) == ["confirmed"]
    [incoming] = await receive(consumer)
    assert data_of(incoming) == "kept"
    broker.append([batch(3)])
    assert await consumer.settle(incoming, ACK)
    await eventually(lambda: broker.health().counters.get("facts_dropped") == 3)
    health = broker.health()
    assert health.state == "up"
    assert any("ledger" in warning and "ledger_spool" in warning for warning in health.warnings)


async def test_delivery_goes_on_when_the_tables_of_traces_are_damaged(place: Place) -> None:
    broker, _ = await place.serving()
    await broker.aclose()
    with place.raw() as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'ledger_facts'").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    with place.path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    broker, consumer = await place.serving()
    broker.append([batch(1)])
    await eventually(lambda: any("cannot be filed" in warning for warning in broker.health().warnings))
    assert results(await broker.publish([signal("kept")], SECONDS)) == ["confirmed"]
    [incoming] = await receive(consumer)
    assert await consumer.settle(incoming, ACK)
    assert broker.health().state == "up"
    assert count(place, "ledger_spool") == 1, "it waits for the tables to be mended"


async def test_facts_find_no_room_on_a_disk_that_is_short_of_space(place: Place) -> None:
    broker = await place.open(min_free_bytes=1 << 60)
    broker.append([batch(1, 2)])
    await eventually(lambda: broker.health().counters.get("facts_dropped") == 2)


async def test_facts_beyond_the_bound_are_dropped_and_counted(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "WAITING_FACTS", 3)
    broker = await place.open()
    broker.append([batch(1, 2), batch(3)])
    broker.append([batch(4)])
    assert broker.health().counters["facts_dropped"] == 1
    await eventually(lambda: count(place, "ledger_signals") == 3)
    broker.append([batch(5)])
    await eventually(lambda: count(place, "ledger_signals") == 4, message="there is room again")


async def test_old_facts_are_forgotten(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filing, "_PRUNE_SECONDS", 0.05)
    now = time.time()
    broker = await place.open(ledger_days=1.0)
    broker.append([batch(1, at=now - 2 * 86_400), batch(2, at=now)])

    async def only_the_new_one() -> bool:
        return await listed(broker) == ["signal-2"]

    await wait_until(only_the_new_one)


async def test_more_than_is_to_be_kept_is_forgotten(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filing, "_PRUNE_SECONDS", 0.05)
    limit = 10_000
    broker = await place.open(ledger_bytes=limit)
    for number in range(0, 250, 50):  # one after the other, as a spool beyond the limit is trimmed as well
        stored = broker.health().counters.get("transactions", 0) + 1
        broker.append([batch(*range(number, number + 50))])
        await eventually(lambda: broker.health().counters.get("transactions", 0) >= stored)  # noqa: B023 - awaited here
        await eventually(lambda: count(place, "ledger_spool") == 0)

    def small() -> bool:
        with looking(place) as connection:
            floor, size = connection.execute("SELECT floor, bytes FROM ledger_meta").fetchone()
        return bool(floor > 0 and size <= limit)

    await eventually(small)
    assert broker.health().counters.get("facts_trimmed", 0) == 0


async def test_a_spool_that_nobody_files_is_bounded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filing, "_PRUNE_SECONDS", 0.05)
    monkeypatch.setattr(filing.Filing, "_file_one", lambda self: None)
    broker = await place.open(ledger_bytes=2_000)
    broker.append([batch(*range(number, number + 50)) for number in range(0, 10_000, 50)])
    await eventually(lambda: broker.health().counters.get("facts_trimmed", 0) >= 5_000)


async def test_the_end_of_a_session_that_died_is_a_fact(place: Place) -> None:
    broker = await place.open()
    broker.append([batch(1)])
    peer = place.peer("sit")
    await peer.line()
    peer.kill()
    broker.append([batch(2)])  # whoever writes next finds it
    await eventually(lambda: count(place, "ledger_sessions") == 1)


async def test_batches_that_cannot_be_read_are_left_out_and_counted(place: Place) -> None:
    broker, _ = await place.serving()
    await broker.aclose()
    with place.raw() as connection:
        connection.execute("INSERT INTO ledger_spool (facts, batch) VALUES (7, x'00')")
    broker = await place.open()
    broker.append([batch(1)])
    assert await listed(broker) == ["signal-1"]
    assert broker.health().counters["facts_unreadable"] == 7


def test_storing_facts_is_all_or_nothing_and_leaves_the_rest_of_the_transaction() -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE other (n)")
        connection.execute(spool.TABLE.replace("batch BLOB NOT NULL", "batch BLOB NOT NULL CHECK (facts < 2)"))
        connection.execute("BEGIN")
        connection.execute("INSERT INTO other VALUES (1)")
        with pytest.raises(sqlite3.IntegrityError):
            spool.store(connection, [batch(1), batch(2, 3)])
        connection.execute("COMMIT")
        counts: Sequence[tuple[int, int]] = connection.execute(
            "SELECT (SELECT count(*) FROM other), (SELECT count(*) FROM ledger_spool)"
        ).fetchall()
        assert counts == [(1, 0)]


async def test_the_trace_of_a_signal_that_waits_names_its_subscription(place: Place) -> None:
    broker, _ = await place.serving()
    broker.append([batch(1)])
    async with traces_of(broker) as traces:
        found = await traces.trace("signal-1")
    assert [(each.subscription, each.state) for each in found.root.deliveries] == [("work", State.WAITING)]


async def test_asking_for_traces_of_a_damaged_ledger_harms_nobody(place: Place) -> None:
    broker, _ = await place.serving()
    await broker.aclose()
    with place.raw() as connection:
        connection.execute("DROP TABLE ledger_spool")
    broker, consumer = await place.serving()
    assert await listed(broker) == []
    assert results(await broker.publish([signal("kept")], SECONDS)) == ["confirmed"]
    [incoming] = await receive(consumer)
    assert await consumer.settle(incoming, ACK)
    assert broker.health().counters.get("reopened", 0) == 0


async def test_a_foreign_lock_while_facts_are_filed_is_seen_by_publishers(place: Place) -> None:
    broker, _ = await place.serving()
    peer = place.peer("lock")
    await peer.line()
    broker.append([batch(1)])
    await eventually(lambda: broker.health().state == "blocked")
    peer.tell()
    await eventually(lambda: count(place, "ledger_signals") == 1)
    assert broker.health().state == "up"


async def test_filing_makes_checkpoints_so_that_the_log_stays_short(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filing, "_FILED_BYTES", 1 << 30)
    broker, _ = await place.serving()
    broker.append([batch(*range(number, number + 200)) for number in range(0, 4_000, 200)])
    await eventually(lambda: count(place, "ledger_signals") == 4_000 and count(place, "ledger_spool") == 0)
    assert place.wal.stat().st_size < 2_000_000, "begun anew after each checkpoint"
