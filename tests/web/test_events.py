"""Server-sent events: numbers, hints, and readers that leave, stay too long, or do not read."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from signalbus import Bus
from signalbus.errors import BrokerUnavailable
from signalbus.web import events
from signalbus.web.events import Rhythm, event
from signalbus.web.protocol import Limits
from tests.web.ask import DEADLINE, Json, get, head
from tests.web.fakes import FakeLetters, letter
from tests.web.world import World, world

FAST = Rhythm(interval=0.05)


class Listener:
    """Reads events."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self.reader = reader

    async def line(self) -> str:
        """Return the next line that says anything; chunk sizes are skipped with the empty ones."""
        async with asyncio.timeout(DEADLINE):
            while True:
                line = (await self.reader.readuntil(b"\n")).decode().strip()
                if line.startswith((":", "event:", "data:", "retry:")):
                    return line

    async def next(self, name: str) -> Json:
        """Return the data of the next event of a name."""
        while await self.line() != f"event: {name}":
            pass
        found: Json = json.loads((await self.line()).removeprefix("data: "))
        return found


@asynccontextmanager
async def listening(here: World) -> AsyncGenerator[Listener]:
    """Yield the events."""
    reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
    try:
        writer.write(head("GET", "/api/v1/events", {"host": "localhost"}))
        first = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE)).decode()
        assert first.startswith("HTTP/1.1 200")
        assert "content-type: text/event-stream" in first
        yield Listener(reader)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def test_numbers_come_again_and_again(tmp_path: Path) -> None:
    async with world(tmp_path, rhythm=FAST) as here, listening(here) as listener:
        for told in [await listener.next("stats") for _ in range(3)]:
            assert told["broker"] == "up"
            assert told["troubles"] == []


async def test_rates_are_those_of_all_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signalbus.web.looks.SECONDS", 0.05)
    async with world(tmp_path, rhythm=FAST) as here, listening(here) as listener:
        await listener.next("stats")
        async with Bus(f"sqlite:///{tmp_path}/bus.db", name="shop") as shop:  # in its own session
            shop.subscribe("order.*", name="billing", handler=_take)
            await listener.next("stats")
            for _ in range(20):
                await shop.publish("order.placed", {}, until="acked", timeout=10)
            async with asyncio.timeout(DEADLINE):
                while True:
                    rates = (await listener.next("stats"))["rates"]
                    if isinstance(rates, dict) and rates["published"] > 0 and rates["acked"] > 0:
                        break
        assert rates.keys() == {"published", "delivered", "acked", "failed"}
        assert rates["failed"] == 0


async def _take(data: dict[str, object]) -> None: ...


async def test_what_changes_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signalbus.web.looks.SECONDS", 0.02)
    monkeypatch.setattr("signalbus.web.looks.GROUPS_SECONDS", 0.02)
    letters = FakeLetters()
    async with world(tmp_path, letters=letters, rhythm=FAST) as here, listening(here) as listener:
        await listener.next("stats")
        here.bus.subscribe("order.*", name="billing", handler=_take)
        await here.bus.publish("order.placed", {})
        dead = letter(1)
        letters.letters[dead.summary.id] = dead
        told: set[str] = set()
        while told < {"dead_letters", "subscribers", "traces"}:
            what = (await listener.next("changed"))["what"]
            assert isinstance(what, list)
            told.update(what)


async def test_a_broker_that_is_away_is_told_and_the_stream_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(timeout: float) -> object:
        raise BrokerUnavailable("nobody there")

    async with world(tmp_path, rhythm=FAST) as here:
        monkeypatch.setattr(here.bus.broker, "queues", away)
        async with listening(here) as listener:
            for told in [await listener.next("stats") for _ in range(2)]:
                assert "nobody there" in str(told["troubles"])
                assert told["ready"] is None


async def test_silence_is_filled_with_comments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(timeout: float) -> object:
        return await asyncio.Event().wait()

    async with world(tmp_path, rhythm=Rhythm(interval=0.05, heartbeat=0.05)) as here:
        monkeypatch.setattr(here.bus.broker, "queues", hang)
        async with listening(here) as listener:
            assert await listener.line() == "retry: 2000"
            assert [await listener.line() for _ in range(3)] == [": still here"] * 3


async def test_a_stream_ends_in_time_so_that_its_reader_has_to_ask_again(tmp_path: Path) -> None:
    async with world(tmp_path, rhythm=Rhythm(interval=0.05, life=0.2)) as here, listening(here) as listener:
        rest = await asyncio.wait_for(listener.reader.readuntil(b"\r\n0\r\n\r\n"), DEADLINE)
        assert b"event: stats" in rest


async def test_streams_end_when_the_server_stops(tmp_path: Path) -> None:
    async with world(tmp_path, rhythm=Rhythm(interval=60)) as here:
        reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
        writer.write(head("GET", "/api/v1/events", {"host": "localhost"}))
        await asyncio.wait_for(reader.readuntil(b"event: stats"), DEADLINE)
        began = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began < 2  # `drain_seconds` is 3
    assert (await reader.read()).endswith(b"0\r\n\r\n")
    writer.close()
    await writer.wait_closed()


async def test_asking_for_the_head_only_is_no_stream(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        answer = await get(here.port, "/api/v1/events", method="HEAD")
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert (await get(here.port, "/metrics")).body.count(b"signalbus_event_streams 0.0") == 1


async def test_only_so_many_read_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events.Streams.__init__, "__defaults__", (2,))
    async with world(tmp_path, rhythm=FAST) as here:
        async with listening(here) as one, listening(here) as other:
            await one.next("stats")
            await other.next("stats")
            answer = await get(here.port, "/api/v1/events")
            assert (answer.status, answer.headers["retry-after"]) == (503, "10")
            assert (await get(here.port, "/healthz")).status == 200
        async with asyncio.timeout(DEADLINE):
            while True:  # until the server has seen that they left
                with suppress(AssertionError):
                    async with listening(here) as third:
                        await third.next("stats")
                        break


async def test_a_reader_that_does_not_read_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "event", lambda name, value: event(name, "x" * 200_000))
    limits = Limits(reader_seconds=0.3)
    async with world(tmp_path, rhythm=Rhythm(interval=0.001), limits=limits) as here:
        with socket.socket() as lazy:
            lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            lazy.connect(("127.0.0.1", here.port))
            lazy.sendall(head("GET", "/api/v1/events", {"host": "localhost"}))
            async with asyncio.timeout(DEADLINE):
                while not here.server.connections:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                while here.server.connections:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)


def test_no_text_forges_an_event() -> None:
    sent = event("stats", {"text": "\n\nevent: changed\ndata: 1\r\r\u2028\x85"})
    assert sent.count(b"\n") == 3
    assert b"\r" not in sent
    assert sent.isascii()
