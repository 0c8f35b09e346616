"""Several routers on one RabbitMQ: one stores, and the next one goes on where it ended. Processes, with one store."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from tests.brokers.world import wait_until
from tests.cli.program import Running
from tests.router.conftest import Ledger, Teller, lock_is_free, router_process, stored, wait_stored
from tests.stopping import stop_without_lock

pytestmark = pytest.mark.rabbitmq

ACTIVE, STANDBY = "keeps the ledger", "stands by"
TAKE_OVER_SECONDS = 5.0
HEARTBEAT_SECONDS = 2.0  # of `conftest.FAST`
BUSY_SECONDS = 8.0  # for a machine that is; without that heartbeat it would be minutes


@pytest.fixture
async def routers(amqp_url: str, tmp_path: Path, ledger: Ledger) -> AsyncIterator[tuple[Running, Running]]:
    """The active router and one that stands by."""
    with router_process(amqp_url, tmp_path, "first") as first:
        await wait_told(first, ACTIVE)
        with router_process(amqp_url, tmp_path, "second") as second:
            await wait_told(second, STANDBY)
            yield first, second


async def wait_told(process: Running, text: str, count: int = 1) -> None:
    await asyncio.to_thread(process.wait_err, text, count)


async def test_a_standby_goes_on_when_the_active_router_is_killed_at_full_rate(
    routers: tuple[Running, Running], tmp_path: Path, ledger: Ledger
) -> None:
    path, teller = tmp_path / "ledger.db", Teller()
    first, second = routers
    for _ in range(100):
        await ledger.put(teller.batch())
    await wait_until(lambda: _is_more(path, 0))
    for _ in range(300):  # on most machines more than what it can have done by now
        await ledger.put(teller.batch())
    first.process.kill()
    await asyncio.to_thread(first.wait)
    before = await stored(path)
    await ledger.put(teller.batch())  # on the others there would be nothing to go on with
    await wait_until(lambda: _is_more(path, before), TAKE_OVER_SECONDS)
    await wait_stored(path, teller.facts)  # no fact lost, and none twice
    await wait_told(second, ACTIVE)
    await wait_until(ledger.is_empty)
    second.send(signal.SIGTERM)
    assert await asyncio.to_thread(second.wait) == 0, second.err


async def _is_more(path: Path, before: int) -> bool:
    return await stored(path) > before


async def test_a_standby_goes_on_within_three_heartbeats_of_the_stop_of_the_active_router(
    routers: tuple[Running, Running], tmp_path: Path, ledger: Ledger
) -> None:
    path, teller = tmp_path / "ledger.db", Teller()
    first, second = routers
    await ledger.put(teller.batch())
    await wait_stored(path, teller.facts)
    await stop_without_lock(first.pid, partial(lock_is_free, path))
    try:
        await ledger.put(teller.batch())
        await wait_stored(path, teller.facts, 3 * HEARTBEAT_SECONDS + BUSY_SECONDS)
        await wait_told(second, ACTIVE)
    finally:
        first.send(signal.SIGCONT)
    await wait_told(first, STANDBY)  # it learns that it is not the one any more, and harms nothing
    await ledger.put(teller.batch())
    await wait_stored(path, teller.facts)


async def test_the_active_router_leaves_in_good_order_and_the_standby_follows_at_once(
    routers: tuple[Running, Running], tmp_path: Path, ledger: Ledger
) -> None:
    path, teller = tmp_path / "ledger.db", Teller()
    first, second = routers
    for _ in range(200):
        await ledger.put(teller.batch())
    first.send(signal.SIGTERM)
    assert await asyncio.to_thread(first.wait) == 0, first.err
    await wait_stored(path, teller.facts, 15.0)
    await wait_told(second, ACTIVE)
    assert "Traceback" not in first.err + second.err
