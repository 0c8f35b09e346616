"""The fault proxy, against an echo server."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from signalbus.testing.proxy import FaultProxy

DEADLINE = 5.0


class Echo:
    """Echoes bytes and says which connections have ended, and how."""

    def __init__(self) -> None:
        self.port = 0
        self.ended: asyncio.Queue[str] = asyncio.Queue()
        self.received = 0
        self.writers: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        try:
            while data := await reader.read(65536):
                self.received += len(data)
                writer.write(data)
                await writer.drain()
            self.ended.put_nowait("fin")
        except ConnectionError:
            self.ended.put_nowait("rst")
        finally:
            self.writers.discard(writer)
            writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    echo.port = server.sockets[0].getsockname()[1]
    yield echo
    server.close()
    for writer in echo.writers:
        writer.transport.abort()
    await server.wait_closed()


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(("127.0.0.1", echo.port), seed=7) as proxy:
        yield proxy


@asynccontextmanager
async def client(proxy: FaultProxy) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    async with asyncio.timeout(DEADLINE):
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def say(
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], data: bytes, *, deadline: float = DEADLINE
) -> bytes:
    reader, writer = connection
    writer.write(data)
    async with asyncio.timeout(deadline):
        return await reader.readexactly(len(data))


async def test_bytes_pass_both_ways_and_are_counted(proxy: FaultProxy) -> None:
    body = random.Random(1).randbytes(1_000_000)
    async with client(proxy) as connection:
        assert await say(connection, body) == body
        assert proxy.connections == 1
    await proxy.wait_connections(0)
    assert (proxy.bytes_up, proxy.bytes_down) == (len(body), len(body))
    assert proxy.connections_total == 1


async def test_url_for_replaces_the_address_only(proxy: FaultProxy) -> None:
    assert proxy.url_for("amqp://u:p%40@broker:1234/v%2F?x=1") == f"amqp://u:p%40@127.0.0.1:{proxy.port}/v%2F?x=1"
    assert proxy.url_for("amqp://broker") == f"amqp://127.0.0.1:{proxy.port}"


async def test_cut_resets_both_sides(proxy: FaultProxy, echo: Echo) -> None:
    async with client(proxy) as connection:
        await say(connection, b"hello")
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            await say(connection, b"hello")
        assert await asyncio.wait_for(echo.ended.get(), DEADLINE) == "rst"
    async with client(proxy) as connection:
        assert await say(connection, b"again") == b"again"


async def test_finish_sends_fin_to_both_sides(proxy: FaultProxy, echo: Echo) -> None:
    async with client(proxy) as connection:
        await say(connection, b"hello")
        proxy.finish()
        assert await asyncio.wait_for(connection[0].read(), DEADLINE) == b""
        assert await asyncio.wait_for(echo.ended.get(), DEADLINE) == "fin"


async def test_black_hole_holds_bytes_until_healed(proxy: FaultProxy) -> None:
    async with client(proxy) as connection:
        await say(connection, b"hello")
        proxy.black_hole()
        with pytest.raises(TimeoutError):
            await say(connection, b"held", deadline=0.1)
        await proxy.heal()
        assert await asyncio.wait_for(connection[0].readexactly(4), DEADLINE) == b"held"


async def test_the_broker_does_not_see_a_client_leave_through_a_black_hole(proxy: FaultProxy, echo: Echo) -> None:
    async with client(proxy) as connection:
        await say(connection, b"hello")
        proxy.black_hole()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(echo.ended.get(), 0.2)
    assert proxy.connections == 1
    await proxy.heal()
    await asyncio.wait_for(echo.ended.get(), DEADLINE)
    await proxy.wait_connections(0)


async def test_a_cut_ends_connections_that_a_black_hole_holds(proxy: FaultProxy, echo: Echo) -> None:
    async with client(proxy) as connection:
        await say(connection, b"hello")
        proxy.black_hole()
        connection[1].write(b"held")
        proxy.cut()
        await proxy.wait_connections(0)
        assert await asyncio.wait_for(echo.ended.get(), DEADLINE) == "rst"


async def test_black_hole_bounds_what_it_holds(proxy: FaultProxy, echo: Echo) -> None:
    async with client(proxy) as (_, writer):
        proxy.black_hole("up")
        writer.write(bytes(50_000_000))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await writer.drain()
        assert echo.received == 0


async def test_half_open_keeps_the_broker_side_until_healed(proxy: FaultProxy, echo: Echo) -> None:
    async with client(proxy) as connection:
        await say(connection, b"hello")
        proxy.half_open("client")
        with pytest.raises(ConnectionResetError):
            await say(connection, b"hello")
    assert echo.ended.empty()
    assert proxy.connections == 1
    async with client(proxy) as connection:
        assert await say(connection, b"new") == b"new"
        assert echo.ended.empty()
        await proxy.heal()
        assert await asyncio.wait_for(echo.ended.get(), DEADLINE) == "rst"
        await proxy.wait_connections(1)
        assert await say(connection, b"lives on") == b"lives on"


async def test_dropped_downstream_reaches_the_broker_and_the_stream_is_not_resumed(
    proxy: FaultProxy, echo: Echo
) -> None:
    async with client(proxy) as connection:
        await say(connection, b"hello")
        proxy.drop_downstream()
        with pytest.raises(TimeoutError):
            await say(connection, b"lost", deadline=0.2)
        with pytest.raises(TimeoutError):
            await say(connection, b"more", deadline=0.2)
        assert echo.received == 13
        await proxy.heal()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(connection[0].read(), DEADLINE)


async def test_delay_is_latency_and_not_a_rate(proxy: FaultProxy) -> None:
    loop = asyncio.get_running_loop()
    async with client(proxy) as connection:
        await say(connection, b"hello")
        proxy.delay(0.1, 0.01)
        start = loop.time()
        reader, writer = connection
        for _ in range(20):
            writer.write(b"x")
            await asyncio.sleep(0.005)
        await asyncio.wait_for(reader.readexactly(20), DEADLINE)
        # One round trip for all of them, not one each (20 x 0.2 s).
        assert 0.18 < loop.time() - start < 1.5


async def test_heal_releases_delayed_bytes_at_once(proxy: FaultProxy) -> None:
    async with client(proxy) as connection:
        await say(connection, b"hello")
        proxy.delay(60)
        with pytest.raises(TimeoutError):
            await say(connection, b"later", deadline=0.1)
        await proxy.heal()
        assert await asyncio.wait_for(connection[0].readexactly(5), DEADLINE) == b"later"


async def test_cut_after_forwards_exactly_that_many_bytes(proxy: FaultProxy, echo: Echo) -> None:
    proxy.cut_after(1_000, direction="up")
    async with client(proxy) as connection:
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await say(connection, bytes(5_000))
    await proxy.wait_connections(0)
    assert proxy.bytes_up == 1_000
    assert proxy.cuts == 1


async def test_where_cuts_fall_depends_on_the_seed_alone(echo: Echo) -> None:
    async def fall(seed: int) -> list[int]:
        falls = []
        async with FaultProxy(("127.0.0.1", echo.port), seed=seed) as proxy:
            proxy.cut_after(100, 10_000, direction="up")
            for _ in range(3):
                before = proxy.bytes_up
                async with client(proxy) as connection:
                    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                        await say(connection, bytes(20_000))
                await proxy.wait_connections(0)
                falls.append(proxy.bytes_up - before)
        return falls

    first = await fall(3)
    assert first == await fall(3)
    assert len(set(first)) == 3
    assert first != await fall(4)


async def test_throttle_limits_the_rate(proxy: FaultProxy) -> None:
    loop = asyncio.get_running_loop()
    async with client(proxy) as connection:
        proxy.throttle(100_000, direction="up")
        start = loop.time()
        await say(connection, bytes(50_000))
        assert 0.4 < loop.time() - start < 2


async def test_refused_until_accepted_while_open_connections_go_on(proxy: FaultProxy) -> None:
    async with client(proxy) as connection:
        await say(connection, b"hello")
        await proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            async with client(proxy):
                pass
        assert await say(connection, b"still") == b"still"
        await proxy.accept()
        async with client(proxy) as other:
            assert await say(other, b"back") == b"back"


async def test_absent_broker_looks_like_a_reset() -> None:
    async with FaultProxy(("127.0.0.1", 1)) as proxy, client(proxy) as connection:
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await say(connection, b"hello")


async def test_a_client_that_leaves_is_passed_on(proxy: FaultProxy, echo: Echo) -> None:
    async with client(proxy) as (reader, writer):
        await say((reader, writer), b"hello")
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), DEADLINE) == b""
    assert await asyncio.wait_for(echo.ended.get(), DEADLINE) == "fin"
    await proxy.wait_connections(0)
