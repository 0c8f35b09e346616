"""Time: delays hang on the boot clock, and on the wall clock only across a reboot."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta

import pytest

from signalbus.brokers.sqlite.clock import Clock, remaining_after_reboot
from signalbus.delivery import RetryLater
from tests.brokers.sqlite.support import SECONDS, WORK, Place, look_only, receive, signal

HOUR = 3_600.0
YEARS = 10 * 365 * 24 * HOUR


@dataclass
class FakeTime:
    wall: float = 1_800_000_000.0
    boottime: float = 1_000.0
    boot_id: str = "first"

    def clock(self) -> Clock:
        return Clock(wall=lambda: self.wall, boottime=lambda: self.boottime, boot_id=lambda: self.boot_id)


@pytest.mark.parametrize(
    ("due", "delay", "now", "remaining"),
    [(130.0, 60.0, 100.0, 30.0), (130.0, 60.0, 200.0, 0.0), (130.0, 60.0, 100.0 - YEARS, 60.0)],
    ids=["in time", "late", "clock set back"],
)
def test_what_remains_after_a_reboot_is_never_negative_nor_longer_than_the_delay(
    due: float, delay: float, now: float, remaining: float
) -> None:
    """Rows 77 and 79."""
    assert remaining_after_reboot(due, delay, now) == remaining


async def _delay(place: Place, time: FakeTime, seconds: float) -> None:
    """Store one delivery that is due after `seconds`."""
    broker, consumer = await place.serving(clock=time.clock())
    await broker.publish([signal()], SECONDS)
    (incoming,) = await receive(consumer)
    assert await consumer.settle(incoming, RetryLater(timedelta(seconds=seconds), ()))
    await broker.aclose()


@pytest.mark.parametrize("jump", [HOUR, -HOUR, -YEARS])
async def test_setting_the_wall_clock_changes_no_delay(place: Place, jump: float) -> None:
    """Row 77."""
    time = FakeTime()
    await _delay(place, time, 50.0)
    time.wall += jump
    time.boottime += 40.0
    broker, consumer = await place.serving(clock=time.clock())
    assert (await place.queue(broker)).delayed == 1, "came too early"
    with pytest.raises(TimeoutError):
        await receive(consumer, timeout=0.2)
    time.boottime += 11.0
    await broker.declare(WORK, SECONDS)  # any transaction looks at what is due
    (incoming,) = await receive(consumer)
    assert incoming.attempt == 2


async def test_a_delay_survives_a_reboot(place: Place) -> None:
    """Row 79: the boot clock starts anew; what remains is taken from the wall clock."""
    time = FakeTime()
    await _delay(place, time, 50.0)
    time.boot_id, time.boottime = "second", 5.0
    time.wall += 30.0
    broker, consumer = await place.serving(clock=time.clock())
    assert (await place.queue(broker)).delayed == 1
    time.boottime += 19.0
    await broker.declare(WORK, SECONDS)
    assert (await place.queue(broker)).delayed == 1, "came too early"
    time.boottime += 2.0
    await broker.declare(WORK, SECONDS)
    (incoming,) = await receive(consumer)
    assert incoming.attempt == 2


async def test_a_reboot_with_a_clock_ten_years_back_waits_no_longer_than_the_delay(place: Place) -> None:
    """Rows 77 and 79."""
    time = FakeTime()
    await _delay(place, time, 50.0)
    time.boot_id, time.boottime = "second", 5.0
    time.wall -= YEARS
    broker, consumer = await place.serving(clock=time.clock())
    time.boottime += 51.0
    await broker.declare(WORK, SECONDS)
    assert (await receive(consumer))[0].attempt == 2


async def test_a_short_delay_needs_nobody_to_look(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    look_only(monkeypatch)
    broker, consumer = await place.serving()
    await broker.publish([signal()], SECONDS)
    (incoming,) = await receive(consumer)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    assert await consumer.settle(incoming, RetryLater(timedelta(seconds=0.2), ()))
    (incoming,) = await receive(consumer)
    assert loop.time() - begun > 0.19
    assert (incoming.attempt, incoming.crashes) == (2, 0)
