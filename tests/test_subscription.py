"""Starting and stopping what serves a subscription. The broker is a script."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

import pytest

from signalbus import BrokerUnavailable, BusClosed, ConfigError, StorageError
from signalbus.brokers.base import Broker, Incoming, SubscriptionSpec
from signalbus.handlers import compile_handler
from signalbus.services import Surroundings
from signalbus.subscriber import SubscriberOptions
from signalbus.subscription import Subscription, SubscriptionService
from signalbus.supervision import Supervisor
from signalbus.telemetry import Telemetry
from tests.support import eventually


class QuietConsumer:
    """Delivers nothing."""

    def __init__(self) -> None:
        self._stopped = asyncio.Event()

    async def receive(self) -> Sequence[Incoming]:
        await self._stopped.wait()
        return ()

    async def stop(self) -> None:
        self._stopped.set()

    async def aclose(self) -> None:
        self._stopped.set()


class ScriptedBroker:
    """Fails to declare as told, then works; ``hang`` never answers a consume."""

    def __init__(self, *failures: Exception, hang: bool = False) -> None:
        self.failures = list(failures)
        self.timeouts: list[float] = []
        self.consumed = 0
        self.hang = hang

    async def declare(self, subscription: SubscriptionSpec, timeout: float) -> None:
        self.timeouts.append(timeout)
        if self.failures:
            raise self.failures.pop(0)

    async def consume(self, name: str, prefetch: int, timeout: float) -> QuietConsumer:
        if self.hang:
            await asyncio.Event().wait()
        self.consumed += 1
        return QuietConsumer()


async def handle(data: dict[str, object]) -> None: ...


class Setup:
    def __init__(self, broker: ScriptedBroker, timeout: float = 5.0) -> None:
        self.errors: list[BaseException] = []
        self.supervisor = Supervisor("test", self.errors.append)
        self.service = SubscriptionService(
            SubscriptionSpec(name="orders", patterns=("#",)), compile_handler(handle), SubscriberOptions()
        )
        self.surroundings = Surroundings(
            broker=cast("Broker", broker),
            session=lambda: "s",
            tell=lambda *_: None,
            telemetry=Telemetry(),
            max_signal_bytes=1_000,
            supervisor=self.supervisor,
            timeout=timeout,
            drain_timeout=1.0,
        )

    async def aclose(self) -> None:
        await self.service.stop()
        await self.supervisor.aclose()
        assert self.errors == []


async def test_a_declaration_whose_connection_was_lost_is_repeated() -> None:
    broker = ScriptedBroker(BrokerUnavailable("lost"), BrokerUnavailable("lost"))
    setup = Setup(broker)
    await setup.service.start(setup.surroundings)
    assert broker.consumed == 1
    # The deadline is for all tries together.
    assert len(broker.timeouts) == 3
    assert broker.timeouts == sorted(broker.timeouts, reverse=True)
    await setup.aclose()


@pytest.mark.parametrize("error", [ConfigError("other patterns"), StorageError("disk full")])
async def test_what_waiting_does_not_mend_is_raised_at_once(error: Exception) -> None:
    broker = ScriptedBroker(error)
    setup = Setup(broker)
    with pytest.raises(type(error)):
        await setup.service.start(setup.surroundings)
    assert len(broker.timeouts) == 1
    with pytest.raises(type(error)):
        await setup.service.wait_served()
    await setup.aclose()


async def test_a_broker_that_stays_away_is_unavailable_in_time() -> None:
    broker = ScriptedBroker(*[BrokerUnavailable("gone") for _ in range(100)])
    setup = Setup(broker, timeout=0.3)
    clock = asyncio.get_running_loop().time
    started = clock()
    with pytest.raises(BrokerUnavailable, match="gone"):
        await setup.service.start(setup.surroundings)
    assert clock() - started < 0.3 + 1.0, "a hundred tries take longer by far"
    await setup.aclose()


async def test_a_consumer_that_does_not_start_is_unavailable_in_time() -> None:
    setup = Setup(ScriptedBroker(hang=True), timeout=0.1)
    with pytest.raises(BrokerUnavailable, match="orders"):
        await setup.service.start(setup.surroundings)
    await setup.aclose()


async def test_stopping_while_it_starts_ends_the_start() -> None:
    setup = Setup(ScriptedBroker(hang=True), timeout=60.0)
    starting = setup.service.start(setup.surroundings)
    await asyncio.sleep(0.01)
    async with asyncio.timeout(3):
        await setup.aclose()
    assert starting.cancelled()


async def test_a_paused_subscription_starts_paused() -> None:
    broker = ScriptedBroker()
    setup = Setup(broker)
    await setup.service.pause()
    await setup.service.start(setup.surroundings)
    assert broker.consumed == 0
    setup.service.resume()
    await eventually(lambda: broker.consumed == 1, 3)
    await setup.aclose()


async def test_a_subscription_is_awaited_in_an_open_bus_and_called_like_its_function() -> None:
    cancelled: list[SubscriptionService] = []

    async def cancel(service: SubscriptionService, *, delete: bool) -> None:
        cancelled.append(service)

    def add(first: int, second: int = 2) -> int:
        """Add."""
        return first + second

    setup = Setup(ScriptedBroker())
    subscription = Subscription(setup.service, add, cancel)
    assert subscription(1) == 3
    assert (subscription.__name__, subscription.__doc__) == ("add", "Add.")  # type: ignore[attr-defined]
    assert repr(subscription) == "<Subscription 'orders' of #>"
    with pytest.raises(BusClosed, match="async with bus"):
        await subscription
    setup.service.start(setup.surroundings)
    assert await subscription is subscription
    await subscription.cancel()
    assert cancelled == [setup.service]
    await setup.aclose()
