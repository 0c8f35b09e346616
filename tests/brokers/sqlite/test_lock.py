"""The write lock: exclusive, fair, bounded."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from signalbus.brokers.base import BrokerState
from signalbus.brokers.sqlite import SqliteBroker
from signalbus.brokers.sqlite import broker as broker_module
from signalbus.delivery import ACK
from signalbus.errors import BrokerUnavailable
from tests.brokers.sqlite.support import SECONDS, Place, receive, results, session, signal
from tests.support import eventually


async def test_the_lock_is_held_by_one_process_at_a_time(place: Place) -> None:
    peers = [place.peer("count_locks", 300) for _ in range(4)]
    for peer in peers:
        assert await peer.line() == "ready"
    for peer in peers:
        peer.tell()
    assert [await peer.line() for peer in peers] == ["done"] * 4


@pytest.mark.slow
async def test_eight_processes_that_contend_share_the_lock_fairly(place: Place) -> None:
    """Row 66: the busiest has at most five times the share of the least, nobody waits longer than a second."""
    peers = [place.peer("compete", 5.0) for _ in range(8)]
    for peer in peers:
        assert await peer.line(60.0) == "ready"
    for peer in peers:
        peer.tell()
    lines = [(await peer.line(60.0)).split() for peer in peers]
    counts = [int(line[0]) for line in lines]
    waits = [float(line[1]) for line in lines]
    assert max(counts) <= 5 * min(counts), counts
    assert max(waits) <= 1.0, waits


@pytest.mark.parametrize("role", ["lock", "exclude"])
async def test_a_lock_held_too_long_fails_publishes_in_time_and_passes(place: Place, role: str) -> None:
    """Row 67: by another signalbus process (stopped in its transaction, say), or by a foreign program."""
    broker, consumer = await place.serving(busy_timeout=0.5)
    peer = place.peer(role)
    assert await peer.line() == "locked"
    begun = time.monotonic()
    with pytest.raises(BrokerUnavailable, match=r"held|holds"):
        await broker.publish([signal("refused")], 30.0)
    assert time.monotonic() - begun < 2.0
    peer.tell()
    assert await peer.line() == "released"
    assert results(await broker.publish([signal("stored")], SECONDS)) == ["confirmed"]
    (incoming,) = await receive(consumer)
    assert incoming.signal.body == b'"stored"', "the publish that was refused must not be stored"
    await eventually(lambda: broker.health().state is BrokerState.UP)


async def test_the_deadline_of_a_publish_holds_while_the_lock_is_held(place: Place) -> None:
    """Row 67."""
    broker, _ = await place.serving()
    peer = place.peer("lock")
    assert await peer.line() == "locked"
    begun = time.monotonic()
    with pytest.raises(BrokerUnavailable, match="another process has held it"):
        await broker.publish([signal()], 0.3)
    assert time.monotonic() - begun < 1.3
    await eventually(lambda: broker.health().state is BrokerState.BLOCKED)
    peer.tell()
    assert await peer.line() == "released"
    assert (await place.queue(broker)).ready == 0


async def test_a_settlement_waits_for_a_lock_that_is_held_too_long(place: Place) -> None:
    """Row 67."""
    broker, consumer = await place.serving(busy_timeout=0.3)
    await broker.publish([signal()], SECONDS)
    (incoming,) = await receive(consumer)
    peer = place.peer("exclude")
    assert await peer.line() == "locked"
    settling = asyncio.create_task(consumer.settle(incoming, ACK))
    with pytest.raises(BrokerUnavailable):
        await broker.publish([signal()], 30.0)
    assert not settling.done()
    peer.tell()
    assert await asyncio.wait_for(settling, SECONDS) is True


async def test_opening_ends_when_the_lock_is_held(place: Place) -> None:
    """Row 67."""
    peer = place.peer("lock")
    assert await peer.line() == "locked"
    broker = SqliteBroker(replace(place.url, busy_timeout=0.3))
    with pytest.raises(BrokerUnavailable, match="fuser"):
        await asyncio.wait_for(broker.open(session(), 30.0), 1.3)
    peer.tell()
    assert await peer.line() == "released"
    await broker.aclose()


async def test_closing_ends_when_the_lock_is_held(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 67: bounded; what was not stored says so."""
    monkeypatch.setattr(broker_module, "_CLOSE_SECONDS", 0.5)
    broker, _ = await place.serving()
    peer = place.peer("lock")
    assert await peer.line() == "locked"
    publishing = asyncio.create_task(broker.publish([signal()], 30.0))
    await asyncio.sleep(0)
    begun = time.monotonic()
    await broker.aclose()
    assert time.monotonic() - begun < 1.5
    with pytest.raises(BrokerUnavailable, match="closed"):
        await publishing
    peer.tell()
    assert await peer.line() == "released"
