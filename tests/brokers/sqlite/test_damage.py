"""Damaged, removed and replaced files: detected, said, and as much as possible goes on."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from signalbus.brokers.base import BrokerState
from signalbus.brokers.sqlite import SqliteBroker
from signalbus.delivery import ACK, DeadLetter, DeadReason
from signalbus.errors import BrokerError, ConfigError, StorageError
from tests.brokers.sqlite.support import SECONDS, Place, data_of, receive, results, signal, signals
from tests.support import eventually

MARK = b"0123456789abcdef" * 8  # found in the file by its bytes


def _flip(path: Path, offset: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ (1 << bit)]))


async def _stored(place: Place, *bodies: bytes) -> None:
    broker, consumer = await place.serving()
    await consumer.stop()
    for body in bodies:
        await broker.publish([signal(body)], SECONDS)
    await broker.aclose()


async def test_a_flipped_bit_in_a_body_is_found_on_delivery_and_the_queue_goes_on(place: Place) -> None:
    """Row 71: SQLite itself does not notice."""
    await _stored(place, b"before", MARK, b"after")
    _flip(place.path, place.path.read_bytes().index(MARK) + 5)
    broker, consumer = await place.serving()
    received = await receive(consumer, 3)
    assert [incoming.malformed is not None for incoming in received] == [False, True, False]
    damaged = received[1]
    assert damaged.malformed is not None
    assert "checksum" in damaged.malformed
    assert await consumer.settle(damaged, DeadLetter(DeadReason.UNDECODABLE, damaged.malformed, ()))
    for incoming in (received[0], received[2]):
        assert await consumer.settle(incoming, ACK)
    (dead,) = await broker.dead_letters(10, SECONDS)
    assert dead.reason is DeadReason.UNDECODABLE
    assert "checksum" in dead.detail
    assert broker.health().counters["damaged_signals"] == 1


@pytest.mark.parametrize("seed", range(60))
async def test_no_flipped_bit_in_a_stored_signal_goes_unnoticed(place: Place, seed: int) -> None:
    """Row 71: anywhere in the row, in its values or in how they are laid out."""
    await _stored(place, b"before", MARK, b"after")
    content = place.path.read_bytes()
    end = content.index(MARK) + len(MARK)
    begin = content.rindex(b'["', 0, end) - 12  # the head, with the row's number and layout before it
    chance = random.Random(seed)
    _flip(place.path, chance.randrange(begin, end), chance.randrange(8))
    broker = await place.open()
    consumer = await broker.consume("work", 10, SECONDS)
    try:
        received = await receive(consumer, 3)
    except (TimeoutError, AssertionError):
        pytest.fail("a delivery was lost")
    intact = [incoming.signal.body for incoming in received if incoming.malformed is None]
    assert MARK not in intact, "the damaged one was handed out"
    assert set(intact) <= {b"before", b"after"}
    for incoming in received:
        assert await consumer.settle(incoming, ACK)


async def test_a_broken_structure_is_refused_with_what_to_do(place: Place) -> None:
    """Row 71: pages overwritten with noise."""
    await _stored(place, *(MARK + bytes([number]) * 2_000 for number in range(50)))
    noise = random.Random(7).randbytes(4096)
    with place.path.open("r+b") as file:
        for page in range(1, place.path.stat().st_size // 4096):
            file.seek(page * 4096)
            file.write(noise)
    with pytest.raises(BrokerError, match=r"recover|damaged"):
        await place.open()


async def test_a_truncated_file_is_refused(place: Place) -> None:
    """Row 71."""
    await _stored(place, *(MARK + bytes([number]) * 2_000 for number in range(50)))
    os.truncate(place.path, place.path.stat().st_size // 2 // 4096 * 4096)
    with pytest.raises((StorageError, ConfigError)):
        await place.open()


async def test_a_flipped_header_is_refused(place: Place) -> None:
    """Row 71."""
    await _stored(place, b"x")
    _flip(place.path, 3)
    with pytest.raises(ConfigError, match="first page is damaged"):
        await place.open()


async def test_a_truncated_log_loses_no_more_than_its_end(place: Place) -> None:
    """Row 71: what follows a damaged frame is not there, what precedes it is."""
    broker, consumer = await place.serving()
    await consumer.stop()
    await broker.publish([signal("first")], SECONDS)
    middle = place.wal.stat().st_size
    await broker.publish([signal("second")], SECONDS)
    copy = Place(place.directory / "copy")
    copy.directory.mkdir()
    shutil.copy(place.path, copy.path)
    shutil.copy(place.wal, copy.wal)
    os.truncate(copy.wal, middle + 100)
    try:
        _, consumer = await copy.serving()
        (incoming,) = await receive(consumer)
        assert data_of(incoming) == "first"
    finally:
        await copy.aclose()


# Removed and replaced while open


async def _publish_anyway(broker: SqliteBroker) -> list[str]:
    """Publish one signal and return how it ended."""
    try:
        return results(await broker.publish([signal("later")], SECONDS))
    except StorageError as error:
        return [str(error)]


@pytest.mark.parametrize("names", [["wal"], ["shm"], ["wal", "shm"]], ids=["wal", "shm", "both"])
async def test_a_removed_log_is_noticed_and_nothing_confirmed_is_lost(place: Place, names: list[str]) -> None:
    """Row 71: the first publish after it is refused or unknown, never confirmed into a file without a name."""
    broker, consumer = await place.serving()
    await consumer.stop()
    await broker.publish(signals(20), SECONDS)
    for name in names:
        getattr(place, name).unlink()
    (outcome,) = await _publish_anyway(broker)
    assert outcome != "confirmed"
    assert "removed" in outcome
    await eventually(lambda: broker.health().state is BrokerState.UP)
    assert results(await broker.publish([signal(20)], SECONDS)) == ["confirmed"]
    assert broker.health().counters["reopened"] == 1
    await broker.aclose()
    _, consumer = await place.serving(prefetch=100)
    assert [data_of(incoming) for incoming in await receive(consumer, 21)] == list(range(21))


@pytest.mark.parametrize("names", [["wal"], ["shm"], ["wal", "shm"]], ids=["wal", "shm", "both"])
async def test_a_removed_log_is_noticed_by_every_user_of_it(place: Place, names: list[str]) -> None:
    """Row 71: three sessions, of which one saves the log, and the others follow."""
    first, consumer = await place.serving()
    await consumer.stop()
    brokers = [first, await place.open(), await place.open()]
    peer = place.peer("publish", 1_000, 20)
    assert await peer.line() == "ready"
    confirmed = {int(await peer.line()) for _ in range(20)}
    assert await peer.line() == ""
    for name in names:
        getattr(place, name).unlink()
    for broker in brokers:
        assert await _publish_anyway(broker) != ["confirmed"]
    for number, broker in enumerate(brokers * 10):
        await eventually(lambda broker=broker: broker.health().state is BrokerState.UP)  # type: ignore[misc]
        assert results(await broker.publish([signal(number)], SECONDS)) == ["confirmed"]
        confirmed.add(number)
    for broker in brokers:
        await broker.aclose()
    with place.raw() as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        (count,) = connection.execute("SELECT count(*) FROM ready").fetchone()
    _, consumer = await place.serving(prefetch=200)
    found = {data_of(incoming) for incoming in await receive(consumer, count)}
    assert confirmed <= found


async def test_a_database_moved_away_is_noticed_and_its_return_too(place: Place) -> None:
    """Row 72."""
    broker, consumer = await place.serving()
    elsewhere = place.path.with_name("elsewhere.db")
    place.path.rename(elsewhere)
    (outcome,) = await _publish_anyway(broker)
    assert outcome != "confirmed"
    await eventually(lambda: broker.health().state is BrokerState.DEGRADED)
    assert "put it back" in broker.health().reason
    with pytest.raises(StorageError):
        await broker.publish([signal()], SECONDS)
    assert not place.path.exists(), "no new database must appear in its place"
    elsewhere.rename(place.path)
    await eventually(lambda: broker.health().state is BrokerState.UP)
    assert results(await broker.publish([signal("back")], SECONDS)) == ["confirmed"]
    assert data_of((await receive(consumer))[0]) == "back"


async def test_a_replaced_database_is_neither_written_nor_harmed(place: Place) -> None:
    """Row 72: somebody restores a backup under a running program."""
    other = Place(place.directory / "other")
    other.directory.mkdir()
    await _stored(other, b"restored")
    broker, _ = await place.serving()
    other.path.replace(place.path)
    before = place.path.read_bytes()
    (outcome,) = await _publish_anyway(broker)
    assert outcome != "confirmed"
    with pytest.raises(StorageError, match="replaced"):
        await broker.publish([signal()], SECONDS)
    await broker.aclose()
    assert place.path.read_bytes() == before
    assert not place.wal.exists(), "the log of the old one must not be taken for that of the new one"
    _, consumer = await place.serving()
    assert (await receive(consumer))[0].signal.body == b"restored"


async def test_a_database_restored_with_its_old_times_is_noticed(place: Place) -> None:
    """Row 72: rsync and tar set the directory's time of modification back once they have replaced the file."""
    other = Place(place.directory / "other")
    other.directory.mkdir()
    await _stored(other, b"restored")
    broker, _ = await place.serving()
    await asyncio.sleep(0.1)  # older than the grain of time stamps, or the directory's state is not relied on
    assert results(await broker.publish([signal()], SECONDS)) == ["confirmed"]
    times = place.directory.stat()
    other.path.replace(place.path)
    os.utime(place.directory, ns=(times.st_atime_ns, times.st_mtime_ns))
    (outcome,) = await _publish_anyway(broker)
    assert outcome != "confirmed", "confirmed into a file without a name"
    assert "replaced" in outcome


async def test_a_delivery_in_hand_survives_a_removed_log(place: Place) -> None:
    """Row 71: settlements wait until the file is open again."""
    broker, consumer = await place.serving()
    await broker.publish([signal()], SECONDS)
    (incoming,) = await receive(consumer)
    place.wal.unlink()
    assert await asyncio.wait_for(consumer.settle(incoming, ACK), SECONDS) is True
    queue = await place.queue(broker)
    assert (queue.ready, queue.unsettled) == (0, 0)


async def test_a_foreign_program_that_vacuums_is_no_trouble(place: Place) -> None:
    """It is a transaction like any other, only a long one."""
    broker, consumer = await place.serving()
    await broker.publish(signals(10), SECONDS)
    await receive(consumer, 10)
    connection = sqlite3.connect(place.path, isolation_level=None)
    connection.execute("VACUUM")
    connection.close()
    assert results(await broker.publish([signal()], SECONDS)) == ["confirmed"]
