"""The page of subscriptions, as the server renders it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from starlette.applications import Starlette

from signalbus import Bus
from signalbus.brokers.base import QueueInfo, SubscriptionSpec
from signalbus.web.pages import page_routes
from tests.support import eventually
from tests.web.page_client import Client, Document
from tests.web.page_world import page_world


async def test_without_subscriptions_the_page_says_how_to_serve_one(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:
        page = (await world.client.get("/subscribers")).page
        assert "There is no subscription yet" in page.text
        assert "signalbus run module:bus" in page.text
        assert "All sessions 1" in page.text


async def test_a_subscription_that_nobody_serves_comes_first(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:

        @world.bus.subscribe("order.*", name="audit")
        async def audit(data: dict[str, object]) -> None:
            pass

        await audit
        await world.bus.broker.declare(SubscriptionSpec(name="billing", patterns=("order.*", "invoice.#")), 5.0)
        await world.bus.publish("order.placed", {"order_id": "A-1"})
        page = (await world.client.get("/subscribers")).page
        assert page.text.index("billing ✗ gone invoice.# order.*") < page.text.index("audit ✓ up order.*")
        assert "waiting 1 oldest waiting" in page.text
        assert "Nobody serves it" in page.text


async def test_a_session_shows_where_it_runs_and_its_last_error(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:
        failed, release = asyncio.Event(), asyncio.Event()
        async with Bus(world.bus.settings.url, name="billing-1", ledger="off") as other:

            @other.subscribe("order.*", name="billing", concurrency=2)
            async def bill(number: int) -> None:
                if number == 1:
                    failed.set()
                    raise TimeoutError("gateway <b>down</b>")
                await release.wait()

            await bill
            await world.bus.publish_many([("order.placed", 1), ("order.placed", 2)])
            await failed.wait()

            async def shown() -> Document | None:
                page = (await world.client.get("/subscribers")).page
                told = "last error: TimeoutError: gateway <b>down</b>" in page.text and "1 in flight" in page.text
                return page if told else None

            page: Document | None = await eventually(shown)
            assert page is not None
            info = other.session
            assert f"billing-1 at {info.host}, pid {info.pid}, version {info.version}" in page.text
            assert "All sessions 2" in page.text
            release.set()


async def test_many_subscriptions_fit(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:
        for number in range(100):
            spec = SubscriptionSpec(name=f"sub-{number:03d}", patterns=tuple(f"a{n}.*" for n in range(20)))
            await world.bus.broker.declare(spec, 5.0)
        answer = await world.client.get("/subscribers")
        assert answer.status == 200
        assert answer.page.text.count("Nobody serves it") == 100
        assert "and 12 more patterns" in answer.page.text


async def test_rates_are_numbers_without_javascript_too(tmp_path: Path) -> None:
    async def rates() -> dict[str, float]:
        return {"published": 1234.5, "delivered": 9.96, "acked": 0.0}

    async with page_world(tmp_path) as world:
        page = (await Client(Starlette(routes=page_routes(world.inspection, rates))).get("/subscribers")).page
        assert "published 1,234 delivered 10.0 acked 0.0 failed \u2013" in page.text
        assert "/subscribers" in page.links()


async def test_many_readers_cost_the_broker_one_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with page_world(tmp_path) as world:
        looks = 0
        queues = world.bus.broker.queues

        async def counted(timeout: float) -> Sequence[QueueInfo]:
            nonlocal looks
            looks += 1
            return await queues(timeout)

        monkeypatch.setattr(world.bus.broker, "queues", counted)
        answers = await asyncio.gather(*(world.client.get("/subscribers") for _ in range(50)))
        assert {answer.status for answer in answers} == {200}
        assert looks < 10
