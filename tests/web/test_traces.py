"""Traces over HTTP: the same as on the command line."""

from __future__ import annotations

import asyncio
from pathlib import Path

from signalbus import Bus
from tests.web.ask import DEADLINE, Answer, Json, get
from tests.web.world import World, world


async def publish(bus: Bus, count: int = 1) -> list[str]:
    """Publish orders, and wait until they are acked."""
    bus.subscribe("order.*", name="billing", handler=_take)
    receipts = [
        await bus.publish("order.placed", {"order_id": f"A-{number}"}, until="acked", timeout=10)
        for number in range(count)
    ]
    return [receipt.id for receipt in receipts]


async def _take(data: dict[str, object]) -> None: ...


async def listed(here: World, query: str = "") -> list[Json]:
    found = (await get(here.port, f"/api/v1/traces?{query}")).json["signals"]
    assert isinstance(found, list)
    return found


async def shown(here: World, signal: str) -> Answer:
    """Return the trace of a signal once all of it is known: facts come a moment later."""

    async with asyncio.timeout(DEADLINE):
        while b'"summary":"1 acked"' not in (answer := await get(here.port, f"/api/v1/traces/{signal}")).body:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return answer


async def test_signals_are_listed_with_what_became_of_them(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        [signal] = await publish(here.bus)

        await shown(here, signal)
        assert [each["summary"] for each in await listed(here)] == ["1 acked"]
        assert [each["id"] for each in await listed(here, "type=order.*&subscription=billing&state=acked")] == [signal]
        assert await listed(here, "failed=true") == []


async def test_a_trace_is_what_the_command_line_shows(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        [signal] = await publish(here.bus)
        answer = await shown(here, signal)
        assert answer.headers["content-type"] == "application/json"
        assert answer.json["schema_version"] == 1
        root = answer.json["signal"]
        assert isinstance(root, dict)
        assert root["id"] == signal
        assert [each["subscription"] for each in root["deliveries"]] == ["billing"]


async def test_what_is_not_known_is_404_with_advice(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        answer = await get(here.port, "/api/v1/traces/0192-unknown")
        assert answer.status == 404
        assert "0192-unknown" in str(answer.json["error"])
        assert answer.json["advice"]
