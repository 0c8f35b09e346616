"""Fault row 101: random harm, then calm; nothing stored is lost and nothing else arrives."""

from __future__ import annotations

import secrets
from contextlib import AsyncExitStack

import pytest

from signalbus.testing.proxy import FaultProxy
from tests.brokers.world import Inbox, World, wait_until
from tests.faults.conftest import BROKERS
from tests.faults.history import effects, read_history
from tests.faults.nemesis import Nemesis


async def survive(world: World, seconds: float, seed: int) -> None:
    print(f"nemesis seed: {seed}")
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(FaultProxy(world.url, seed=seed)) if world.is_rabbitmq else None
        # The subscription must exist before the first publish: nobody is to be unroutable.
        async with world.serving("#", handler=Inbox()):
            pass
        nemesis = Nemesis(world, seed=seed, proxy=proxy)
        await nemesis.start()
        await world.wait_steps("ok", 11, 60)  # interpreters start: who does nothing yet cannot be harmed
        await nemesis.rage(seconds)
        for publisher in nemesis.publishers:
            await publisher.kill()
        history = read_history(world)
        async with world.serving("#", handler=(rest := Inbox()), concurrency=10) as bus:
            # L2, and S6: nothing is left behind that nobody holds.
            dead: set[int] = set()

            async def settled() -> bool:
                letters = await bus.broker.dead_letters(10_000, 5.0)
                dead.update(int(letter.signal.body) for letter in letters)
                return history.ok <= {*effects(world), *rest.data, *dead}

            await wait_until(settled, 60, message=f"every stored signal after {nemesis.done}")
            await world.wait_empty(bus, "work", timeout=30)
        history = read_history(world)
        history.check([*effects(world), *rest.data], dead)
        assert history.failed == set() or len(history.failed) < len(history.invoked) / 2
        assert set(nemesis.done)


@pytest.mark.parametrize("broker", BROKERS)
async def test_nothing_stored_is_lost_to_random_harm(broker: str, world: World) -> None:
    await survive(world, seconds=4, seed=secrets.randbelow(2**32))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("broker", BROKERS)
async def test_nothing_stored_is_lost_to_a_minute_of_random_harm(broker: str, world: World) -> None:
    await survive(world, seconds=60, seed=secrets.randbelow(2**32))
