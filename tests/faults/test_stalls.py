"""Fault rows 48 and 49: processes that stand still longer than a heartbeat, and then go on as if nothing had been."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.brokers.world import Inbox, World
from tests.faults.conftest import BROKERS
from tests.faults.history import effects
from tests.support import eventually

HEARTBEAT = 1
SLEEP = 3.0  # of a handler: long enough that it is stopped before it has ended, also on a busy machine


def impatient(world: World) -> str:
    """Return the URL with a heartbeat that is soon missed."""
    return world.url.replace("heartbeat=2", f"heartbeat={HEARTBEAT}")


@pytest.mark.parametrize("broker", ["rabbitmq-quorum", "rabbitmq-classic"])
async def test_a_suspended_subscriber_is_replaced_and_harms_nobody_when_it_wakes(broker: str, world: World) -> None:
    zombie = await world.worker(url=impatient(world), behaviour="sleep", seconds=SLEEP, prefetch=1)
    async with world.bus() as bus:
        await bus.publish("work.item", "held")
        await world.wait_steps("start", 1)
        zombie.signal(signal.SIGSTOP)
        async with world.serving("#", handler=(other := Inbox())):
            # The broker takes it back when the heartbeat is missed: "2-3 x heartbeat".
            await other.wait(1, 10)
            assert other.got[0][1].crashes == 1
            zombie.signal(signal.SIGCONT)
            # Its effect may be out already, its ack is not taken for another's.
            await world.wait_steps("effect", 1)
            for number in range(20):
                await bus.publish("work.item", number)
            await eventually(lambda: {*effects(world), *other.data} == {"held", *range(20)})
            await world.wait_empty(bus, "work")
        # It is a subscriber again.
        await bus.publish("work.item", "after")
        await eventually(lambda: "after" in effects(world), 15)
    assert effects(world)["held"] + other.data.count("held") == 2


@pytest.mark.parametrize("broker", ["sqlite"])
async def test_a_suspended_subscriber_keeps_what_it_holds(broker: str, world: World) -> None:
    # The kernel says who is dead, not a clock: slow is not dead.
    slow = await world.worker(behaviour="sleep", seconds=SLEEP, prefetch=1)
    async with world.bus() as bus, world.serving("other", handler=Inbox(), name="other"):
        await bus.publish("work.item", "held")
        await world.wait_steps("start", 1)
        await world.suspend(slow)
        async with world.serving("#", handler=(other := Inbox())):
            await bus.publish("work.item", "next")
            assert await other.wait(1) == ["next"]
            # A span in which nothing may happen cannot be waited for with an event.
            await asyncio.sleep(1.0)
            assert other.data == ["next"]
            slow.signal(signal.SIGCONT)
            await world.wait_steps("effect", 1)
            await world.wait_empty(bus, "work")
    assert effects(world) == {"held": 1}


@pytest.mark.parametrize("broker", BROKERS)
async def test_a_handler_that_blocks_the_loop_for_four_heartbeats_runs_a_bounded_number_of_times(
    broker: str, world: World
) -> None:
    # Measured without a remedy: connection lost, ack fails, redelivered, for ever.
    await world.worker(url=impatient(world), behaviour="block", seconds=4.0 * HEARTBEAT, prefetch=1)
    async with world.bus() as bus:
        await bus.publish("work.item", "blocking")
        await world.wait_steps("effect", 1)
        await world.wait_empty(bus, "work", timeout=20)
        dead = await bus.broker.dead_letters(10, 5)
    assert len(world.steps("start")) == 1
    assert dead == []
