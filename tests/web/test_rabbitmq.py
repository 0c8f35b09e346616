"""The same over RabbitMQ: a router's store, and what the broker and its sessions tell."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from signalbus import Bus
from signalbus.inspection import Inspection
from signalbus.trace.reader import TraceReader
from signalbus.trace.store import SqliteStore
from signalbus.web.app import create_app
from signalbus.web.serve import WebServer
from tests.web.ask import DEADLINE, get
from tests.web.fakes import FakeLetters
from tests.web.test_state import samples
from tests.web.world import LOCAL, serving

pytestmark = pytest.mark.rabbitmq


async def _take(data: dict[str, object]) -> None: ...


async def test_a_bus_on_rabbitmq_is_looked_at(amqp_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signalbus.web.looks.SECONDS", 0.05)
    store = SqliteStore(tmp_path / "ledger.db")
    async with (
        Bus(amqp_url, name="router", ledger="off") as bus,
        Bus(amqp_url, name="shop") as shop,
        TraceReader(store) as traces,
    ):
        await shop.subscribe("order.*", name="billing", handler=_take)
        inspection = Inspection(bus=bus, traces=traces, letters=FakeLetters(), troubles=list)
        server = WebServer(create_app(inspection, LOCAL), LOCAL)
        async with serving(server):
            await get(server.port, "/metrics")
            for _ in range(3):
                await shop.publish("order.placed", {}, until="acked", timeout=10)
            async with asyncio.timeout(DEADLINE):
                while True:
                    found = samples(await get(server.port, "/metrics"))
                    acked = found.get(("signalbus_deliveries_total", "outcome=acked,subscription=billing"))
                    if acked == 3 and found["signalbus_subscriptions", ""] == 1:
                        break
                    await asyncio.sleep(0.05)
            assert found["signalbus_published_total", ""] == 3
            assert found["signalbus_queue_consumers", "subscription=billing"] == 1
            assert {each["name"] for each in (await get(server.port, "/api/v1/subscribers")).list} == {"billing"}
            assert len((await get(server.port, "/api/v1/sessions")).list) == 2
            began = time.monotonic()
            assert (await get(server.port, "/readyz")).json["ready"] is True
            assert time.monotonic() - began < 1  # asks nobody
