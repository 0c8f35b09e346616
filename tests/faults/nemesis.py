"""A seeded nemesis: does harm at random until its time is over, then stops all of it.

The seed is printed; the same seed does the same things in the same order. (What they meet on the way still differs.)
"""

from __future__ import annotations

import asyncio
import random
import signal
import sqlite3
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote, urlsplit

from signalbus.testing.proxy import FaultProxy
from tests.brokers.world import Worker, World

Harm = Callable[[], Awaitable[None]]

MEMORY_ALARM = "{{resource_limit, memory, node()}, []}"


class Nemesis:
    """Keeps ``subscribers`` and ``publishers`` processes alive, and kills them."""

    def __init__(self, world: World, *, seed: int, proxy: FaultProxy | None = None) -> None:
        self._world = world
        self._random = random.Random(seed)
        self._proxy = proxy
        self._url = world.url if proxy is None else proxy.url_for(world.url)
        self.seed = seed
        self.subscribers: list[Worker] = []
        self.publishers: list[Worker] = []
        self.done: list[str] = []
        self._next_value = 0

    async def start(self, *, subscribers: int = 2, publishers: int = 2) -> None:
        """Start the processes."""
        for _ in range(subscribers):
            self.subscribers.append(await self._subscriber())
        for _ in range(publishers):
            self.publishers.append(await self._publisher())

    async def rage(self, seconds: float) -> None:
        """Do harm for some time."""
        harms = self._harms()
        async with asyncio.timeout(seconds + 60):
            end = asyncio.get_running_loop().time() + seconds
            while asyncio.get_running_loop().time() < end:
                harm = self._random.choice(harms)
                self.done.append(harm.__name__)
                await harm()
                # A pause of the nemesis, not a wait for something: faults should also meet work half done.
                await asyncio.sleep(self._random.uniform(0.05, 0.5))
        await self.calm()

    async def calm(self) -> None:
        """End every fault; the processes go on."""
        if self._proxy is not None:
            await self._proxy.heal()
        if self._world.node is not None:
            await self._world.node.eval("rabbit_alarm:clear_alarm({resource_limit, memory, node()})")
        for worker in (*self.subscribers, *self.publishers):
            worker.signal(signal.SIGCONT)

    def _harms(self) -> list[Harm]:
        harms: list[Harm] = [self.kill_subscriber, self.kill_publisher, self.suspend_subscriber]
        if self._proxy is not None:
            harms += [self.cut, self.cut_in_a_frame, self.half_open, self.black_hole]
        if self._world.node is not None:
            harms += [self.close_connections, self.alarm]
        if not self._world.is_rabbitmq:
            harms += [self.lock]
        return harms

    # Harm

    async def kill_subscriber(self) -> None:
        """kill -9, and start another."""
        victim = self._random.randrange(len(self.subscribers))
        await self.subscribers[victim].kill()
        self.subscribers[victim] = await self._subscriber()

    async def kill_publisher(self) -> None:
        """kill -9, and start another, which publishes further values."""
        victim = self._random.randrange(len(self.publishers))
        await self.publishers[victim].kill()
        self.publishers[victim] = await self._publisher()

    async def suspend_subscriber(self) -> None:
        """SIGSTOP for a while."""
        victim = self._random.choice(self.subscribers)
        victim.signal(signal.SIGSTOP)
        await asyncio.sleep(self._random.uniform(0.1, 1.0))
        victim.signal(signal.SIGCONT)

    async def cut(self) -> None:
        """Reset every connection."""
        self._need_proxy().cut()

    async def cut_in_a_frame(self) -> None:
        """Reset connections after a random number of bytes."""
        proxy = self._need_proxy()
        proxy.cut_after(1, 5_000)
        await asyncio.sleep(self._random.uniform(0.1, 0.5))
        await proxy.heal()

    async def half_open(self) -> None:
        """The client's side is dead; the broker does not know."""
        self._need_proxy().half_open()

    async def black_hole(self) -> None:
        """Nothing passes for a while."""
        proxy = self._need_proxy()
        proxy.black_hole(self._random.choice(["up", "down", "both"]))
        await asyncio.sleep(self._random.uniform(0.1, 1.0))
        await proxy.heal()

    async def close_connections(self) -> None:
        """As ``rabbitmqctl close_all_connections``, on our virtual host."""
        await close_connections(self._world)

    async def alarm(self) -> None:
        """Memory alarm for a while: publishers are blocked."""
        node = self._world.node
        assert node is not None
        await node.eval(f"rabbit_alarm:set_alarm({MEMORY_ALARM})")
        await asyncio.sleep(self._random.uniform(0.1, 1.0))
        await node.eval("rabbit_alarm:clear_alarm({resource_limit, memory, node()})")

    async def lock(self) -> None:
        """A foreign program holds the database's write lock for a while."""
        path = unquote(urlsplit(self._world.url).path[1:])
        seconds = self._random.uniform(0.1, 1.0)
        release = asyncio.Event()
        loop = asyncio.get_running_loop()

        def hold() -> None:
            connection = sqlite3.connect(path, timeout=5, isolation_level=None)
            try:
                connection.execute("BEGIN IMMEDIATE")
                asyncio.run_coroutine_threadsafe(release.wait(), loop).result(10)
                connection.execute("ROLLBACK")
            finally:
                connection.close()

        holding = asyncio.create_task(asyncio.to_thread(hold))
        await asyncio.sleep(seconds)
        release.set()
        await holding

    # Processes

    async def _subscriber(self) -> Worker:
        return await self._world.worker(url=self._url, concurrency=4, max_attempts=50, ready=False)

    async def _publisher(self) -> Worker:
        first, self._next_value = self._next_value, self._next_value + 1_000_000
        job: dict[str, Any] = {"role": "publish", "first": first, "count": 1_000_000, "ready": False}
        return await self._world.worker(url=self._url, **job)

    def _need_proxy(self) -> FaultProxy:
        assert self._proxy is not None
        return self._proxy


async def close_connections(world: World) -> None:
    """Close the broker's connections of our virtual host, as an operator would."""
    assert world.node is not None
    vhost = unquote(urlsplit(world.url).path[1:])
    await world.node.eval(
        f'[rabbit_networking:close_connection(Pid, "fault") || Pid <- rabbit_networking:connections(), '
        f'[{{vhost, <<"{vhost}">>}}] =:= (catch rabbit_networking:connection_info(Pid, [vhost]))]'
    )
