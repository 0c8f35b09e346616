"""Liveness: what the dead leave behind goes on, what the living hold stays theirs."""

from __future__ import annotations

import asyncio
import os
import signal as signals_
import time

import pytest

from signalbus.brokers.base import Incoming, SubscriptionSpec
from signalbus.brokers.sqlite import SqliteBroker
from signalbus.brokers.sqlite.consumer import SqliteConsumer
from signalbus.brokers.sqlite.sessions import SessionLock, is_alive, remove_leftovers
from signalbus.delivery import ACK
from tests.brokers.sqlite.support import SECONDS, WORK, Place, receive, results, signal, signals, wait_until
from tests.support import eventually


async def test_deliveries_of_a_killed_process_come_again_with_the_crash_counted(place: Place) -> None:
    """Row 43: within about a second, by the sweep."""
    broker, consumer = await place.serving()
    await consumer.stop()
    await broker.publish(signals(3), SECONDS)
    peer = place.peer("hold", 3)
    assert await peer.line() == "holding"
    assert (await place.queue(broker)).unsettled == 3
    consumer = await broker.consume(WORK.name, 10, SECONDS)
    peer.kill()
    begun = time.monotonic()
    received = await receive(consumer, 3)
    assert time.monotonic() - begun < 3.0
    assert [(incoming.attempt, incoming.crashes) for incoming in received] == [(1, 1)] * 3
    assert broker.health().counters["sessions_buried"] == 1
    await eventually(lambda: len(list(place.sessions.glob("*.lock"))) == 1)


async def test_an_orderly_close_gives_deliveries_back_without_counting(place: Place) -> None:
    broker, consumer = await place.serving()
    await consumer.stop()
    await broker.publish(signals(3), SECONDS)
    peer = place.peer("hold", 3)
    assert await peer.line() == "holding"
    consumer = await broker.consume(WORK.name, 10, SECONDS)
    peer.tell()
    received = await receive(consumer, 3)
    assert [(incoming.attempt, incoming.crashes) for incoming in received] == [(1, 0)] * 3
    assert await peer.line() == "closed"


async def test_a_stopped_process_keeps_its_deliveries(place: Place) -> None:
    """Row 48: SIGSTOP is no death; the kernel still holds its lock for it."""
    broker, consumer = await place.serving()
    await consumer.stop()
    await broker.publish(signals(2), SECONDS)
    peer = place.peer("hold", 2)
    assert await peer.line() == "holding"
    consumer = await broker.consume(WORK.name, 10, SECONDS)
    peer.send(signals_.SIGSTOP)
    with pytest.raises(TimeoutError):
        await receive(consumer, timeout=2.5)  # more than two sweeps
    peer.kill()
    assert [incoming.crashes for incoming in await receive(consumer, 2)] == [1, 1]


async def test_opening_takes_over_what_a_dead_process_held(place: Place) -> None:
    broker, consumer = await place.serving()
    await consumer.stop()
    await broker.publish(signals(2), SECONDS)
    peer = place.peer("hold", 2)
    assert await peer.line() == "holding"
    await broker.aclose()
    peer.kill()
    _, consumer = await place.serving()
    assert [incoming.crashes for incoming in await receive(consumer, 2)] == [1, 1]


async def test_temporary_subscriptions_of_a_killed_process_are_no_audience(place: Place) -> None:
    broker, _ = await place.serving()
    peer = place.peer("linger")
    assert await peer.line() == "serving"
    assert results(await broker.publish([signal(type="passing")], SECONDS)) == ["confirmed"]
    peer.kill()

    async def returned() -> bool:
        return results(await broker.publish([signal(type="passing")], SECONDS)) == ["returned"]

    await wait_until(returned, 3.0)
    assert [queue.name for queue in await broker.queues(SECONDS)] == [WORK.name]


async def test_a_process_that_died_unseen_is_no_audience(place: Place) -> None:
    """It came and went while we did nothing: its subscription is first seen with the next publish."""
    broker, _ = await place.serving()
    peer = place.peer("linger")
    assert await peer.line() == "serving"
    peer.kill()
    assert results(await broker.publish([signal(type="passing")], SECONDS)) == ["returned"]


async def test_a_removed_lock_file_is_restored_before_others_take_us_for_dead(place: Place) -> None:
    """Somebody tidies up: at worst deliveries come twice, settlements of the first are then void."""
    broker, consumer = await place.serving()
    other = await place.open()  # sessions are swept while there are several
    await broker.publish([signal()], SECONDS)
    (first,) = await receive(consumer)
    for path in place.sessions.glob("*.lock"):
        path.unlink()
    await eventually(lambda: len(list(place.sessions.glob("*.lock"))) == 2, 5.0)
    fenced = broker.health().counters.get("sessions_fenced", 0)
    if await consumer.settle(first, ACK):
        assert not fenced
    else:
        (again,) = await receive(consumer)
        assert again.crashes == 1
        assert await consumer.settle(again, ACK)
    assert results(await other.publish([signal()], SECONDS)) == ["confirmed"]
    assert len(await receive(consumer)) == 1


async def test_an_idle_session_taken_for_dead_is_back_without_being_used(place: Place) -> None:
    """It serves nobody and is alone as far as it knows; its temporary subscription must be an audience again."""
    idle = await place.open()
    await idle.declare(SubscriptionSpec(name="passing", patterns=("passing",), durable=False), SECONDS)
    for path in place.sessions.glob("*.lock"):
        path.unlink()
    other = await place.open()  # opening looks after the dead

    async def audible() -> bool:
        return results(await other.publish([signal(type="passing")], SECONDS)) == ["confirmed"]

    await wait_until(audible, 5.0)
    assert len(list(place.sessions.glob("*.lock"))) == 2


async def test_a_session_taken_for_dead_settles_nothing_and_serves_on(place: Place) -> None:
    broker, consumer = await place.serving()
    await broker.publish([signal()], SECONDS)
    (first,) = await receive(consumer)
    other = await place.open()
    desk = other._desk
    assert desk is not None
    assert desk.lock is not None
    (token,) = [path.stem for path in place.sessions.glob("*.lock") if path.stem != desk.lock.token]
    (place.sessions / f"{token}.lock").unlink()
    await other.declare(WORK, SECONDS)
    third = await place.open()  # opening looks after the dead
    assert await consumer.settle(first, ACK) is False
    (again,) = await receive(consumer)
    assert again.crashes == 1
    assert await consumer.settle(again, ACK)
    assert broker.health().counters["sessions_fenced"] == 1
    assert (await place.queue(third)).consumers == 1


def test_a_lock_is_alive_while_it_is_held(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("locks") / "sessions"
    lock = SessionLock(directory)
    assert is_alive(directory, lock.token)
    assert is_alive(directory, lock.token), "asking must not change the answer"
    lock.close()
    lock.close()
    assert not is_alive(directory, lock.token)


def test_leftovers_of_dead_processes_are_removed(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("locks") / "sessions"
    lock = SessionLock(directory)
    (directory / "dead.lock").touch()
    (directory / "dead.sock").touch()
    (directory / "known.lock").touch()
    remove_leftovers(directory, {"known"})
    assert sorted(path.name for path in directory.iterdir()) == sorted([f"{lock.token}.lock", "known.lock"])
    lock.close()


# Forks


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12: we have threads
async def test_a_forked_child_can_neither_use_nor_harm_the_broker(place: Place) -> None:
    """Row 75."""
    broker, consumer = await place.serving()
    await broker.publish([signal("held")], SECONDS)
    (held,) = await receive(consumer)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, _complaints_of_the_child(broker, consumer, held).encode())
        finally:
            os._exit(0)
    os.close(writing)
    said = b""
    while part := os.read(reading, 4096):
        said += part
    os.close(reading)
    await asyncio.to_thread(os.waitpid, child, 0)
    assert said.decode() == "ConfigError ConfigError ConfigError closed"
    # The parent goes on as if nothing had happened.
    assert await consumer.settle(held, ACK)
    assert results(await broker.publish([signal("after")], SECONDS)) == ["confirmed"]
    assert len(await receive(consumer)) == 1


def _complaints_of_the_child(broker: SqliteBroker, consumer: SqliteConsumer, held: Incoming) -> str:
    async def complain() -> str:
        said: list[str] = []
        calls = (
            broker.publish([signal()], SECONDS),
            broker.declare(WORK, SECONDS),
            consumer.settle(held, ACK),
        )
        for call in calls:
            try:
                await call
            except Exception as error:  # noqa: BLE001 - to be told to the parent
                said.append(type(error).__name__)
        await broker.aclose()
        return " ".join([*said, "closed"])

    return asyncio.new_event_loop().run_until_complete(complain())


async def test_a_forked_child_does_not_keep_its_parent_alive(place: Place) -> None:
    """Row 75: the child inherits the lock file; a parent that dies must be found dead all the same."""
    broker, consumer = await place.serving()
    await consumer.stop()
    await broker.publish([signal()], SECONDS)
    peer = place.peer("fork_and_hold")
    holding, child = (await peer.line()).split()
    assert holding == "holding"
    consumer = await broker.consume(WORK.name, 10, SECONDS)
    try:
        peer.kill()
        assert [incoming.crashes for incoming in await receive(consumer)] == [1]
    finally:
        os.kill(int(child), signals_.SIGKILL)
