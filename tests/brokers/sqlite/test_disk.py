"""Disks that are full or fail, and logs that grow: typed outcomes, nothing confirmed lost, recovery by itself."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from signalbus.brokers.base import BrokerState
from signalbus.brokers.sqlite import SqliteBroker, database, schema
from signalbus.brokers.sqlite.consumer import SqliteConsumer
from signalbus.delivery import ACK
from signalbus.errors import StorageError
from tests.brokers.sqlite.support import SECONDS, WORK, Place, data_of, receive, results, signal, signals, wait_until
from tests.disks import KIB, fill
from tests.support import eventually


@pytest.fixture
async def small_place(small_disk: Path) -> AsyncIterator[Place]:
    """A place on a file system of four megabytes."""
    place = Place(small_disk)
    yield place
    await place.aclose()


async def _publish_until_refused(broker: SqliteBroker) -> tuple[int, list[str]]:
    """Publish numbers until one is not confirmed; return how many were, and how that one ended."""
    for number in range(1_000):
        (outcome,) = await broker.publish([signal([number, "x" * 20 * KIB])], SECONDS)
        if outcome.result != "confirmed":
            return number, [outcome.result.value, outcome.reason]
    raise AssertionError("the disk is not full")


async def _settle_all(consumer: SqliteConsumer, count: int) -> list[int]:
    found: list[int] = []
    while len(found) < count:
        for incoming in await asyncio.wait_for(consumer.receive(), SECONDS):
            found.append(data_of(incoming)[0])
            assert await asyncio.wait_for(consumer.settle(incoming, ACK), SECONDS)
    return found


async def test_a_full_disk_refuses_publishes_and_recovers(small_place: Place) -> None:
    """Row 69: nothing confirmed is lost, and nothing refused appears."""
    broker, consumer = await small_place.serving(prefetch=1)
    await consumer.stop()
    confirmed, (result, reason) = await _publish_until_refused(broker)
    assert confirmed > 10
    assert result == "refused"
    assert "full" in reason
    filler = fill(small_place.directory)
    assert results(await broker.publish([signal([-1])], SECONDS)) == ["refused"]
    filler.unlink()
    # SQLite frees room inside its file only; the file system needs some as well.
    await broker.aclose()
    moved = Place(small_place.directory.parent)
    for path in small_place.directory.glob("bus.db*"):
        if path.is_file():
            shutil.copy(path, moved.directory)
    try:
        broker = await moved.open()
        stored = (await moved.queue(broker)).ready
        assert stored == confirmed
        consumer = await broker.consume(WORK.name, 10, SECONDS)
        assert await _settle_all(consumer, stored) == list(range(confirmed))
    finally:
        await moved.aclose()


async def test_settling_on_a_full_disk_waits_for_room(small_place: Place) -> None:
    """Row 69: neither an error for the consumer nor a settlement lost."""
    broker, consumer = await small_place.serving(prefetch=20)
    for number in range(20):
        await broker.publish([signal([number, "x" * 2 * KIB])], SECONDS)
    held = await receive(consumer, 20)
    filler = fill(small_place.directory)
    settling = [asyncio.create_task(consumer.settle(incoming, ACK)) for incoming in held]
    await eventually(lambda: broker.health().counters.get("failed_transactions", 0) >= 2)
    assert not any(task.done() for task in settling)
    filler.unlink()
    assert await asyncio.wait_for(asyncio.gather(*settling), SECONDS) == [True] * 20
    queue = await small_place.queue(broker)
    assert (queue.ready, queue.unsettled) == (0, 0)
    assert results(await broker.publish([signal([1])], SECONDS)) == ["confirmed"]
    assert broker.health().state is BrokerState.UP


async def test_closing_on_a_full_disk_ends(small_place: Place) -> None:
    """Row 69: what is in hand comes again once there is room."""
    broker, consumer = await small_place.serving()
    await broker.publish([signal([1])], SECONDS)
    (incoming,) = await receive(consumer)
    filler = fill(small_place.directory)
    settling = asyncio.create_task(consumer.settle(incoming, ACK))
    await eventually(lambda: broker.health().counters.get("failed_transactions", 0) >= 1)
    await asyncio.wait_for(broker.aclose(), 7.0)
    assert await settling is False
    filler.unlink()
    _, consumer = await small_place.serving()
    assert data_of((await receive(consumer))[0]) == [1]


async def test_little_free_space_refuses_publishes_but_settles(
    small_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 69: below the mark there is still room for acks."""
    monkeypatch.setattr(database, "_SPACE_SECONDS", 0.1)
    broker, consumer = await small_place.serving(min_free_bytes=1024 * KIB)
    await broker.publish([signal([1])], SECONDS)
    (incoming,) = await receive(consumer)
    filler = fill(small_place.directory, leave=512 * KIB)

    async def refused() -> bool:
        (outcome,) = await broker.publish([signal([2])], SECONDS)
        assert outcome.result == "confirmed" or "min_free_bytes" in outcome.reason
        return outcome.result == "refused"

    async def taken() -> bool:
        return not await refused()

    await wait_until(refused, 3.0)
    assert broker.health().state is BrokerState.BLOCKED
    assert await consumer.settle(incoming, ACK)
    filler.unlink()
    await wait_until(taken, 3.0)
    assert broker.health().state is BrokerState.UP


# Failing devices


def _strace() -> str:
    found = shutil.which("strace")
    if found is None:
        pytest.skip("needs strace")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("call", ["fdatasync", "pwrite64", "pread64"])
async def test_io_errors_confirm_nothing_false_and_pass(place: Place, call: str) -> None:
    """Row 70: the device fails some calls; what was confirmed is there, and service goes on after it."""
    script = [sys.executable, "-m", "tests.brokers.sqlite.peer", "publish", str(place.path), "0", "300"]
    await (await place.open()).aclose()
    # Not from the first call on: opening must succeed.
    inject = f"inject={call}:error=EIO:when={80 if call != 'pread64' else 25}+45"
    command = [_strace(), "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject, *script]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[3]
    )
    output, errors = await asyncio.wait_for(process.communicate(), 100.0)
    lines = output.decode().split()
    assert lines[0] == "ready", errors.decode()
    confirmed = [int(line) for line in lines[1:] if line.isdecimal()]
    failures = [line for line in lines[1:] if not line.isdecimal()]
    assert failures or call == "pread64", "nothing was injected"
    assert len(confirmed) > 50
    assert process.returncode == 0, errors.decode()
    with place.raw() as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    broker = await place.open()
    stored = (await place.queue(broker)).ready
    consumer = await broker.consume(WORK.name, 400, SECONDS)
    received = await receive(consumer, stored)
    assert set(confirmed) <= {data_of(incoming) for incoming in received}


# Logs


async def test_the_log_stays_short_under_load(place: Place) -> None:
    broker, consumer = await place.serving()
    await consumer.stop()
    for _ in range(20):
        await broker.publish([signal("x" * 10 * KIB) for _ in range(100)], SECONDS)
    assert place.wal.stat().st_size < 3 * 4 * 1024 * KIB


async def test_a_long_reader_makes_the_log_grow_with_a_warning_and_no_longer(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 68: the reader does not stop anybody; once it ends, the log is cut."""
    monkeypatch.setattr(database, "WAL_CAP_BYTES", 12 * 1024 * KIB)
    monkeypatch.setattr(database, "_TRUNCATE_BYTES", 8 * 1024 * KIB)
    broker, consumer = await place.serving()
    await consumer.stop()
    reader = place.peer("read")
    assert await reader.line() == "reading"
    for _ in range(25):
        await broker.publish([signal("x" * 10 * KIB) for _ in range(100)], SECONDS)
    assert place.wal.stat().st_size > 12 * 1024 * KIB
    (warning,) = broker.health().warnings
    assert "read transaction" in warning
    reader.tell()
    assert await reader.line() == "released"
    for _ in range(10):
        await broker.publish([signal("x" * 10 * KIB) for _ in range(100)], SECONDS)
    assert broker.health().warnings == ()
    assert place.wal.stat().st_size < 12 * 1024 * KIB


async def test_an_io_error_is_typed_and_the_file_opened_anew(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 70, without a tracer: the commit fails, so its outcome is unknown."""
    broker, consumer = await place.serving()
    await consumer.stop()
    await broker.publish(signals(3), SECONDS)
    failing = [True]
    commit = database.Database.commit

    def fail_once(self: database.Database, written: int) -> None:
        if failing.pop() if failing else False:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
            error.sqlite_errorname = "SQLITE_IOERR_FSYNC"
            raise error
        commit(self, written)

    monkeypatch.setattr(database.Database, "commit", fail_once)
    (outcome,) = await broker.publish([signal()], SECONDS)
    assert outcome.result == "unknown"
    assert "kernel log" in outcome.reason
    await eventually(lambda: broker.health().counters.get("reopened") == 1)
    assert results(await broker.publish([signal()], SECONDS)) == ["confirmed"]
    assert (await place.queue(broker)).ready == 4


async def test_damage_found_while_open_stops_the_service_and_says_so(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 71: after an error the structure is checked, and a damaged file is not served on."""
    broker, consumer = await place.serving()
    await consumer.stop()

    def damaged(*_: object) -> None:
        raise StorageError("is damaged (row 3 missing from index); recover it")

    def fail(*_: object) -> None:
        error = sqlite3.DatabaseError("database disk image is malformed")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(schema, "verify", damaged)
        patch.setattr(database.Database, "commit", fail)
        assert results(await broker.publish([signal()], SECONDS)) == ["unknown"]
        await eventually(lambda: "row 3" in broker.health().reason)
        with pytest.raises(StorageError, match="recover"):
            await broker.publish([signal()], SECONDS)
        assert broker.health().state is BrokerState.DEGRADED
    await eventually(lambda: broker.health().state is BrokerState.UP)
    await broker.declare(WORK, SECONDS)
