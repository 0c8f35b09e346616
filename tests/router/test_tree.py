"""The parts of a router: one that fails is started again with those behind it, and facts are stored again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from signalbus import Bus
from signalbus.brokers.rabbitmq.collector import CollectorState
from signalbus.errors import Escalated
from signalbus.router.daemon import Router
from signalbus.supervision import ChildSpec, ChildState
from signalbus.web.access import Access
from signalbus.web.client import Client
from tests.router.conftest import KEEP, Ledger, Teller, routing, wait_stored
from tests.support import eventually

pytestmark = pytest.mark.rabbitmq
PARTS = (
    *("store", "collect", "ends of sessions", "forget"),
    *("dead letters", "ends of replays", "replays", "lost replays", "forget dead letters"),
    *("api and page", "beside"),
)


async def idle() -> None:
    await asyncio.Event().wait()


def restarts(router: Router) -> dict[str, int]:
    return {child.name: child.restarts for child in router.status().children}


def kill(router: Router, part: str) -> None:
    """Cancel the task of a part, as the driver does to whoever waits for it."""
    [name] = [child.task for child in router.status().children if child.name == part]
    [task] = [task for task in asyncio.all_tasks() if task.get_name() == name]
    task.cancel()


@pytest.mark.parametrize("part", PARTS)
async def test_a_part_that_fails_is_started_again_with_those_behind_it(
    part: str, amqp_url: str, tmp_path: Path, ledger: Ledger
) -> None:
    path, teller = tmp_path / "ledger.db", Teller()
    async with routing(amqp_url, path, access=Access(port=0), beside=[ChildSpec(name="beside", start=idle)]) as router:
        assert tuple(restarts(router)) == PARTS
        await ledger.put(teller.batch())
        await wait_stored(path, teller.facts)
        kill(router, part)
        expected = {name: int(PARTS.index(name) >= PARTS.index(part)) for name in PARTS}
        await eventually(lambda: restarts(router) == expected)
        await eventually(
            lambda: all(child.state is ChildState.RUNNING for child in router.status().children), message=part
        )
        await ledger.put(teller.batch())
        await wait_stored(path, teller.facts)
        await eventually(lambda: router.role is CollectorState.ACTIVE)
        assert router.troubles() == []
        assert (await asyncio.to_thread(Client(url=str(router.url)).about)).url


async def test_a_part_that_fails_again_and_again_ends_the_router(amqp_url: str, tmp_path: Path) -> None:
    async def fail() -> None:
        raise RuntimeError("a bug of ours")

    bus = Bus(amqp_url, name="router", ledger="off")
    router = Router(bus, tmp_path / "ledger.db", KEEP, beside=[ChildSpec(name="buggy", start=fail)])
    with pytest.raises(Escalated, match="a bug of ours"):
        async with asyncio.timeout(30):
            await router.serve()
