"""Fault rows 42 and 43: processes killed between two steps that belong together."""

from __future__ import annotations

from collections import Counter

import pytest

from signalbus import Signal
from tests.brokers.world import Inbox, World
from tests.faults.conftest import BROKERS
from tests.faults.history import effects, read_history
from tests.support import eventually


@pytest.mark.parametrize("point", ["die-before-effect", "die-after-effect", "die-after-ack"])
@pytest.mark.parametrize("broker", BROKERS)
async def test_a_subscriber_killed_at_any_step_loses_nothing(broker: str, point: str, world: World) -> None:
    async with world.serving("#", handler=Inbox()) as bus:
        pass
    async with world.bus() as bus:
        for number in range(3):
            await bus.publish("work.item", number)
        victim = await world.worker(behaviour=point, prefetch=1, ready=False)
        assert await victim.wait() == -9
        async with world.serving("#", handler=(rest := Inbox())):
            await eventually(lambda: {*effects(world), *rest.data} == {0, 1, 2})
            await world.wait_empty(bus, "work")
    total = effects(world) + Counter(rest.data)
    match point:
        case "die-before-effect":
            assert total == Counter([0, 1, 2])
        case "die-after-effect":
            # Duplicates of the wire; the id tells them.
            assert total == Counter([0, 0, 1, 2])
            first = {entry["id"] for entry in world.steps("effect") if entry["data"] == 0}
            assert {delivery.id for data, delivery in rest.got if data == 0} == first
            assert {delivery.crashes for data, delivery in rest.got if data == 0} == {1}
        case _:
            # The next one may have had its effect by then. RabbitMQ does not confirm acks, so the last may be lost.
            assert set(total) == {0, 1, 2}
            assert sum(total.values()) <= 5
            if not world.is_rabbitmq:
                assert total[0] == 1


@pytest.mark.parametrize("broker", BROKERS)
async def test_a_publisher_killed_before_its_journal_repeats_with_the_same_id(broker: str, world: World) -> None:
    inbox = Inbox()
    async with world.serving("#", handler=inbox) as bus:
        victim = await world.worker(role="publish", behaviour="die-after-confirm", count=10, ready=False)
        assert await victim.wait() == -9
        history = read_history(world)
        assert (history.invoked, history.ok) == ({0}, set())  # stored, but it does not know
        (entry,) = world.steps("invoke")
        await bus.publish(Signal(type="work.item", data=0, source="worker", id=entry["id"]))
        await inbox.wait(2)
        await world.wait_empty(bus, "work")
    assert {delivery.id for _, delivery in inbox.got} == {entry["id"]}
    assert [delivery.redelivered for _, delivery in inbox.got] == [False, False]
