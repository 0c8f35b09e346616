"""Waking other processes: fast with a hint, in time without."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import pytest

from signalbus.brokers.base import SubscriptionSpec
from signalbus.brokers.sqlite.wake import Wake
from signalbus.delivery import ACK
from tests.brokers.sqlite.support import (
    SECONDS,
    Place,
    idle_share,
    look_only,
    receive,
    remove_sockets,
    settled,
    signal,
)

REPLY = SubscriptionSpec(name="replies", patterns=("reply",))


async def _round_trips(place: Place, count: int) -> list[float]:
    """Time from publishing to a reply published by another process."""
    broker = await place.open()
    await broker.declare(REPLY, SECONDS)
    consumer = await broker.consume(REPLY.name, 1, SECONDS)
    peer = place.peer("echo")
    assert await peer.line() == "ready"
    times: list[float] = []
    for number in range(count):
        begun = time.monotonic()
        await broker.publish([signal(number, "ask")], SECONDS)
        (incoming,) = await receive(consumer)
        times.append(time.monotonic() - begun)
        assert await consumer.settle(incoming, ACK)
    return times


async def test_another_process_wakes_within_twenty_milliseconds(place: Place) -> None:
    """There and back again in less than forty."""
    times = await _round_trips(place, 50)
    assert statistics.median(times) < 0.04


async def test_a_lost_hint_costs_no_more_than_the_poll_interval(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 74: sockets are gone, so nobody is woken."""
    look_only(monkeypatch, "_POLL_SECONDS")
    first, consumer = await place.serving()
    second = await place.open()
    for broker in (first, second):
        remove_sockets(await settled(broker))
    await second.publish([signal()], SECONDS)
    (incoming,) = await receive(consumer)
    assert await consumer.settle(incoming, ACK)
    assert (await place.queue(first)).ready == 0


async def test_long_paths_work_too(tmp_path: Path) -> None:
    """The path of a socket is limited to about a hundred bytes."""
    directory = tmp_path / ("d" * 100)
    directory.mkdir()
    place = Place(directory)
    try:
        times = await _round_trips(place, 5)
        assert statistics.median(times) < 0.2
    finally:
        await place.aclose()


async def test_an_idle_consumer_uses_next_to_no_processor(place: Place) -> None:
    await place.serving()
    await place.serving()
    assert await idle_share() < 0.02, "two idle brokers"


def test_a_ring_before_the_wait_is_heard() -> None:
    wake = Wake()
    wake.ring()
    begun = time.monotonic()
    assert wake.wait(5.0) is False
    assert time.monotonic() - begun < 1.0
    wake.close()
    wake.close()
    wake.ring()


def test_hints_are_told_from_rings(tmp_path: Path) -> None:
    here, there = Wake(), Wake()
    path = here.listen(tmp_path, "here")
    there.hint([path, str(tmp_path / "nobody"), ""])
    assert here.wait(5.0) is True
    assert here.wait(0.0) is False
    here.close()
    there.close()
    assert list(tmp_path.iterdir()) == []


def test_a_full_mailbox_blocks_nobody(tmp_path: Path) -> None:
    here, there = Wake(), Wake()
    path = here.listen(tmp_path, "here")
    begun = time.monotonic()
    there.hint([path] * 10_000)
    for _ in range(1_000):
        here.ring()
    assert time.monotonic() - begun < 2.0
    here.close()
    there.close()
