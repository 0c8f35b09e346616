"""The server among the children of a supervisor: ready before the next, started again, stopped in order."""

from __future__ import annotations

import asyncio
from pathlib import Path

from signalbus.supervision import ChildSpec, Supervisor
from signalbus.web.access import Access
from signalbus.web.serve import WebServer
from tests.web.ask import DEADLINE, get
from tests.web.world import world


async def test_it_is_ready_when_its_supervisor_is_and_gone_when_that_ends(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        server = WebServer(here.server.app, Access(port=0))
        async with Supervisor("router", children=[ChildSpec(name="http", start=server.serve, ready=server.ready)]):
            assert (await get(server.port, "/healthz")).status == 200
        assert server.connections == 0
        with_nobody = await asyncio.wait_for(_refused(server.port), DEADLINE)
        assert with_nobody


async def _refused(port: int) -> bool:
    try:
        await get(port, "/healthz")
    except ConnectionError:
        return True
    return False


async def test_when_it_breaks_it_is_started_again(tmp_path: Path) -> None:
    breaks, again = asyncio.Event(), asyncio.Event()

    async def serve() -> None:
        if breaks.is_set():
            again.set()
            await server.serve()
        serving = asyncio.create_task(server.serve())
        await breaks.wait()
        serving.cancel()
        await asyncio.wait([serving])
        raise RuntimeError("broken in the middle of its work")

    async with world(tmp_path) as here:
        server = WebServer(here.server.app, Access(port=0))
        async with Supervisor("router", children=[ChildSpec(name="http", start=serve, ready=server.ready)]) as tree:
            assert (await get(server.port, "/healthz")).status == 200
            breaks.set()
            await asyncio.wait_for(again.wait(), DEADLINE)
            await asyncio.wait_for(server.ready.wait(), DEADLINE)
            assert (await get(server.port, "/healthz")).status == 200
            assert [child.restarts for child in tree.which_children()] == [1]
