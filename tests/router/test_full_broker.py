"""Fault row 27: the disk of RabbitMQ is really full. What was confirmed is there afterwards, and nobody hangs."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from signalbus import Bus
from signalbus.errors import BrokerError
from signalbus.testing.rabbitmq import PrivateNode, find_server
from tests.brokers.world import Inbox
from tests.disks import fill, mounted
from tests.router.conftest import FAST, routing, stored
from tests.support import eventually

BODY = "x" * 100_000


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 96 megabytes: a node needs some."""
    with mounted(tmp_path / "small", "96m") as directory:
        yield directory


@pytest.fixture
async def small_node(disk: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PrivateNode]:
    """A node whose directory is that file system; its disk alarm comes far too late."""
    if find_server() is None:
        pytest.skip("needs a local rabbitmq-server")
    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "tempdir", str(disk))
        node = PrivateNode(config={"disk_free_limit.absolute": "1KB"})
        await node.start()
    try:
        yield node
    finally:
        await node.aclose()


@pytest.mark.slow
@pytest.mark.rabbitmq
@pytest.mark.timeout(300)
async def test_row_27_a_full_disk_of_the_broker_loses_nothing_that_was_confirmed(
    small_node: PrivateNode, disk: Path, tmp_path: Path
) -> None:
    inbox = Inbox()
    bus = Bus(f"{small_node.url()}?{FAST}", name="shop", publish_timeout=3.0)
    bus.subscribe("order.*", handler=inbox, name="billing")
    confirmed: list[int] = []
    refused = 0

    async def publish(first: int, count: int) -> None:
        nonlocal refused
        for number in range(first, first + count):
            try:
                await bus.publish("order.placed", {"n": number, "body": BODY})
                confirmed.append(number)
            except BrokerError:
                refused += 1

    async def publish_again(first: int, seconds: float) -> bool:
        """Publish until one is confirmed; whether that was so in time."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + seconds
        while clock() < deadline:
            before = len(confirmed)
            await publish(first := first + 1, 1)
            if len(confirmed) > before:
                return True
            await asyncio.sleep(0.2)
        return False

    async with bus, routing(small_node.url(), tmp_path / "ledger.db") as router:
        await publish(0, 20)
        await bus.subscriptions()[0].pause()
        filler = await asyncio.to_thread(fill, disk)
        async with asyncio.timeout(120):
            await publish(100, 10)  # none of them hangs
        filler.unlink()
        if not await publish_again(200, 20):
            await small_node.restart(kill=True)  # its log of quorum queues gives up for good after some tries
            assert await publish_again(300, 60)
        await bus.subscriptions()[0].resume()
        await eventually(lambda: {data["n"] for data in inbox.data} >= set(confirmed), 60)
        await eventually(lambda: router.troubles() == [], 60, message=f"{router.troubles()}")
    assert refused
    assert await stored(tmp_path / "ledger.db") > 0
