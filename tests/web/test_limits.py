"""Clients that are slow, idle, or do not read: others are served meanwhile, and nothing of theirs stays."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from signalbus.errors import ConfigError
from signalbus.web import bodies
from signalbus.web.access import Access
from signalbus.web.protocol import Limits
from signalbus.web.serve import WebServer
from tests.web.ask import DEADLINE, get, head, raw, read_answer
from tests.web.world import World, serving, world

LARGE = 32 << 20


@asynccontextmanager
async def connection(here: World) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Yield a connection to it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def test_a_head_that_comes_byte_by_byte_is_408(tmp_path: Path) -> None:
    async with world(tmp_path, limits=Limits(head_seconds=0.3)) as here, connection(here) as (reader, writer):
        sent = head("GET", "/healthz", {"host": "localhost", "x": "y" * 1_000})
        dripping = asyncio.create_task(_drip(writer, sent))
        answer = await asyncio.wait_for(read_answer(reader), DEADLINE)
        assert answer.status == 408
        dripping.cancel()
        await asyncio.wait([dripping])
        with suppress(ConnectionError):  # as bytes came that nobody read
            assert await asyncio.wait_for(reader.read(), DEADLINE) == b""
        assert (await get(here.port, "/healthz")).status == 200


async def _drip(writer: asyncio.StreamWriter, sent: bytes) -> None:
    for byte in sent:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.02)


async def test_a_connection_without_a_request_is_closed(tmp_path: Path) -> None:
    async with world(tmp_path, limits=Limits(head_seconds=0.2)) as here, connection(here) as (reader, _):
        assert await asyncio.wait_for(reader.read(), DEADLINE) == b""


async def test_the_next_request_on_a_connection_has_its_own_time(tmp_path: Path) -> None:
    limits = Limits(head_seconds=0.3)
    async with world(tmp_path, limits=limits) as here, connection(here) as (reader, writer):
        whole = head("GET", "/healthz", {"host": "localhost"})
        for _ in range(3):  # longer than the time for one head
            writer.write(whole)
            assert (await read_answer(reader)).status == 200
            await asyncio.sleep(0.15)
        writer.write(whole + whole + whole[:20])  # pipelined, the last in part
        assert [(await read_answer(reader)).status for _ in range(2)] == [200, 200]
        assert (await asyncio.wait_for(read_answer(reader), DEADLINE)).status == 408


async def test_a_body_that_does_not_come_is_408(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies.BodyCheck.__init__, "__defaults__", (bodies.LIMIT, 0.2))
    async with world(tmp_path) as here:
        kind = {"host": "localhost", "content-type": "application/json", "content-length": "10"}
        answer = await raw(here.port, head("POST", "/api/v1/dead-letters/discard", kind) + b"{")
        assert answer.status == 408
        assert answer.headers["connection"] == "close"


async def test_a_body_that_is_no_http_ends_its_connection_only(tmp_path: Path) -> None:
    async with world(tmp_path) as here, connection(here) as (reader, writer):
        kind = {"host": "localhost", "content-type": "application/json", "transfer-encoding": "chunked"}
        writer.write(head("POST", "/api/v1/dead-letters/discard", kind) + b"2\r\n{}\r\nnot a size\r\n")
        assert (await read_answer(reader)).status == 400
        assert await asyncio.wait_for(reader.read(), DEADLINE) == b""
        assert (await get(here.port, "/healthz")).status == 200


async def test_a_client_that_leaves_in_its_body_harms_nobody(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        async with connection(here) as (_, writer):
            kind = {"host": "localhost", "content-type": "application/json", "content-length": "10"}
            writer.write(head("POST", "/api/v1/dead-letters/discard", kind) + b"{")
            await writer.drain()
        assert (await get(here.port, "/healthz")).status == 200


async def test_thousands_of_idle_connections_lock_nobody_out(tmp_path: Path) -> None:
    async with world(tmp_path, limits=Limits(connections=20)) as here:
        idle = [socket.create_connection(("127.0.0.1", here.port)) for _ in range(20)]
        try:
            for _ in range(200):
                idle.append(socket.create_connection(("127.0.0.1", here.port)))
                if len(idle) % 20 == 0:
                    assert (await get(here.port, "/healthz")).status == 200
            assert here.server.connections <= 21
        finally:
            for each in idle:
                each.close()


async def test_a_request_that_runs_makes_no_room_for_idle_ones(tmp_path: Path) -> None:
    gate, entered = asyncio.Event(), asyncio.Event()

    async def hold(request: Request) -> Response:
        entered.set()
        await gate.wait()
        return Response(b"held")

    async with world(tmp_path, limits=Limits(connections=4), pages=[Route("/hold", hold)]) as here:
        held = asyncio.create_task(get(here.port, "/hold"))
        await asyncio.wait_for(entered.wait(), DEADLINE)
        idle = [socket.create_connection(("127.0.0.1", here.port)) for _ in range(20)]
        assert (await get(here.port, "/healthz")).status == 200
        gate.set()
        assert (await held).body == b"held"
        for each in idle:
            each.close()


async def test_a_reader_that_does_not_read_is_cut_off(tmp_path: Path) -> None:
    async def much(request: Request) -> Response:
        return Response(b"x" * LARGE)

    pages = [Route("/much", much)]
    async with world(tmp_path, limits=Limits(reader_seconds=0.3), pages=pages) as here:
        with socket.socket() as lazy:
            lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            lazy.connect(("127.0.0.1", here.port))
            lazy.sendall(head("GET", "/much", {"host": "localhost"}))
            await _gone(here)
        assert (await get(here.port, "/healthz")).status == 200


async def test_a_reader_that_is_slow_but_reads_gets_it_all(tmp_path: Path) -> None:
    async def at_once(request: Request) -> Response:
        return Response(b"x" * LARGE, headers={"connection": "close"})

    async def in_pieces(request: Request) -> Response:
        return StreamingResponse(_pieces(), headers={"connection": "close", "content-length": str(LARGE)})

    async def _pieces() -> AsyncGenerator[bytes]:
        for _ in range(0, LARGE, 1 << 16):
            yield b"x" * (1 << 16)

    pages, limits = [Route("/at-once", at_once), Route("/in-pieces", in_pieces)], Limits(reader_seconds=0.3)
    async with world(tmp_path, limits=limits, pages=pages) as here:
        for path in ("/at-once", "/in-pieces"):
            async with connection(here) as (reader, writer):
                writer.write(head("GET", path, {"host": "localhost"}))
                await reader.readuntil(b"\r\n\r\n")
                began = time.monotonic()
                for _ in range(LARGE >> 20):
                    await reader.readexactly(1 << 20)
                    await asyncio.sleep(0.03)
                assert time.monotonic() - began > 0.6  # longer than a reader may stand still
                assert await reader.read() == b""


async def _gone(here: World) -> None:
    """Wait until no connection is open at the server."""
    async with asyncio.timeout(DEADLINE):
        while here.server.connections:  # noqa: ASYNC110 - the server's side has no event
            await asyncio.sleep(0.02)


# Starting and stopping


async def test_requests_that_run_end_before_it_does(tmp_path: Path) -> None:
    entered = asyncio.Event()

    async def slow(request: Request) -> Response:
        entered.set()
        await asyncio.sleep(0.3)
        return Response(b"done")

    async with world(tmp_path, pages=[Route("/slow", slow)]) as here:
        asked = asyncio.create_task(get(here.port, "/slow"))
        await asyncio.wait_for(entered.wait(), DEADLINE)
    assert (await asked).body == b"done"


async def test_a_request_that_does_not_end_is_cut_in_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entered = asyncio.Event()

    async def hang(request: Request) -> Response:
        entered.set()
        await asyncio.sleep(60)
        return Response()

    async with world(tmp_path, limits=Limits(drain_seconds=1), pages=[Route("/hang", hang)]) as here:
        asked = asyncio.create_task(get(here.port, "/hang"))
        await asyncio.wait_for(entered.wait(), DEADLINE)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        assert (await asked).status == 500


async def test_who_does_not_want_to_wait_for_the_end_cancels_again(tmp_path: Path) -> None:
    entered = asyncio.Event()

    async def hang(request: Request) -> Response:
        entered.set()
        await asyncio.sleep(60)
        return Response()

    async with world(tmp_path, pages=[Route("/hang", hang)]) as here:
        other = WebServer(here.server.app, Access(port=0), Limits(drain_seconds=60))
        serving = asyncio.create_task(other.serve())
        await asyncio.wait_for(other.ready.wait(), DEADLINE)
        asked = asyncio.create_task(get(other.port, "/hang"))
        await asyncio.wait_for(entered.wait(), DEADLINE)
        serving.cancel()
        await asyncio.wait([serving], timeout=0.1)
        assert not serving.done()
        serving.cancel()
        done, _ = await asyncio.wait([serving], timeout=DEADLINE)
        assert done
        assert serving.cancelled()
        await asyncio.wait([asked])
        assert asked.exception() is not None


async def test_it_may_be_run_again_as_supervisors_do(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        again = WebServer(here.server.app, Access(port=0))
        for _ in range(3):
            async with serving(again):
                assert (await get(again.port, "/healthz")).status == 200
            assert not again.ready.is_set()


async def test_a_port_that_is_taken_is_named_or_another_is_used(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        other = WebServer(here.server.app, Access(port=here.port))
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{here.port}: Address already in use"):
            await other.serve()
        another = WebServer(here.server.app, Access(port=here.port, or_any=True))
        async with serving(another):
            assert another.port != here.port
            assert (await get(another.port, "/healthz")).status == 200
    nowhere = WebServer(here.server.app, Access(host="no.such.host.invalid", port=0, token="x" * 16))
    with pytest.raises(ConfigError, match=r"cannot listen on no\.such\.host\.invalid"):
        await nowhere.serve()
