"""What the contract suite needs of a broker: buses on one URL, subscribers in processes that can be killed."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from signalbus import Bus, Delivery, Monitor, SignalBusError, Subscription
from signalbus.brokers.base import StoredDeadLetter
from signalbus.config import BrokerUrl, SqliteUrl, parse_url
from signalbus.testing.rabbitmq import PrivateNode
from tests.stopping import stop, stop_without_lock
from tests.support import eventually

ROOT = Path(__file__).parents[2]
DEADLINE = 20.0  # seconds; generous, since a missed one is a failure and a met one costs nothing


class Inbox:
    """A handler that keeps what it got. ``act`` runs in it, and may wait or raise."""

    def __init__(self, act: Callable[[Any, Delivery], object] | None = None) -> None:
        self.got: list[tuple[Any, Delivery]] = []
        self._act = act
        self._changed = asyncio.Event()

    async def __call__(self, data: object, delivery: Delivery) -> None:
        self.got.append((data, delivery))
        self._changed.set()
        self._changed = asyncio.Event()
        if self._act is not None:
            result = self._act(data, delivery)
            if asyncio.iscoroutine(result):
                await result

    @property
    def data(self) -> list[Any]:
        """What was handled, in order, repetitions included."""
        return [data for data, _ in self.got]

    async def wait(self, count: int, timeout: float = DEADLINE) -> list[Any]:
        """Wait for `count` runs of the handler and return their data."""
        try:
            async with asyncio.timeout(timeout):
                while len(self.got) < count:
                    await self._changed.wait()
        except TimeoutError as error:
            raise AssertionError(f"{len(self.got)} of {count} deliveries within {timeout} s: {self.got[:5]}") from error
        return self.data


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker process does; see `tests.brokers.worker`. ``log`` gets a line for each step of each handler."""

    url: str
    log: str
    role: str = "subscribe"
    name: str = "work"
    patterns: Sequence[str] = ("#",)
    behaviour: str = "record"
    concurrency: int = 1
    prefetch: int | None = None
    durable: bool = True
    max_attempts: int = 5
    max_crashes: int = 10
    seconds: float = 0.0
    first: int = 0
    count: int = 0
    idempotent: bool = False
    backlog: int = 1_000
    timeout: float = 10.0
    target: str = ""
    options: dict[str, Any] = field(default_factory=dict)


class Worker:
    """A process that serves or publishes until its stdin is closed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid
        self.session = ""  # of its bus, once it is ready

    async def wait_ready(self, timeout: float = DEADLINE) -> None:
        """Wait until it serves."""
        assert self._process.stdout is not None
        async with asyncio.timeout(timeout):
            line = await self._process.stdout.readline()
        assert line.startswith(b"ready "), f"the worker said {line!r}"
        self.session = line.split()[1].decode()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        if self._process.returncode is None:
            self._process.send_signal(number)

    async def wait(self, timeout: float = DEADLINE) -> int:
        """Wait for its end and return the exit code."""
        async with asyncio.timeout(timeout):
            return await self._process.wait()

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        await self._process.wait()

    async def aclose(self) -> None:
        """End it in good order, or kill it."""
        assert self._process.stdin is not None
        self.signal(signal.SIGCONT)
        self._process.stdin.close()
        try:
            await self.wait(5)
        except TimeoutError:
            await self.kill()


class WatchedBus(Bus):
    """A bus that notes at its end which of its monitors wait for sessions that are gone."""

    leaks: list[Monitor]

    async def aclose(self) -> None:
        if self.monitors():
            try:
                self.leaks += await self.leaked_monitors()
            except SignalBusError:
                pass  # the test took the broker away
        await super().aclose()


class World:
    """One broker, empty at the start of a test. ``node`` is there when the test may harm it."""

    def __init__(self, url: str, directory: Path, node: PrivateNode | None = None) -> None:
        self.url = url
        self.directory = directory
        self.node = node
        self._workers: list[Worker] = []
        self._buses: list[WatchedBus] = []
        self._leaks: list[Monitor] = []

    @property
    def is_rabbitmq(self) -> bool:
        """Whether it can be restarted, cut off and asked."""
        return self.url.startswith("amqp")

    @property
    def crashes_after_release(self) -> int:
        """What a delivery that another process gave back shows: RabbitMQ (before 4.3) counts it as a crash."""
        return 1 if self.is_rabbitmq else 0

    def bus(self, url: str | None = None, **options: Any) -> Bus:
        """Return a bus with short timeouts; closed at the end of the test if the test did not."""
        settings = {"name": "test", "publish_timeout": 10.0, "connect_timeout": 10.0, "drain_timeout": 5.0, **options}
        bus = WatchedBus(url or self.url, **settings)
        bus.leaks = self._leaks
        self._buses.append(bus)
        return bus

    @asynccontextmanager
    async def serving(
        self, *patterns: str, handler: Callable[..., object], name: str = "work", **options: Any
    ) -> AsyncIterator[Bus]:
        """An open bus with one subscription."""
        bus = self.bus()
        bus.subscribe(*patterns, handler=handler, name=name, **options)
        async with bus:
            yield bus

    async def worker(self, *, ready: bool = True, **job: Any) -> Worker:
        """Start a worker process and wait until it serves, unless it may be dead before."""
        order = Job(url=job.pop("url", self.url), log=str(self.log), **job)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.brokers.worker",
            json.dumps(asdict(order)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        worker = Worker(process)
        self._workers.append(worker)
        if ready:
            await worker.wait_ready()
        return worker

    async def suspend(self, worker: Worker) -> None:
        """SIGSTOP a worker, but not inside a transaction of the embedded broker, whose lock it would hold."""
        if self.is_rabbitmq:
            await stop(worker.pid)
        else:
            await stop_without_lock(worker.pid, partial(_becomes_free, parse_url(self.url)))

    @property
    def log(self) -> Path:
        """The file that workers write to."""
        return self.directory / "workers.log"

    def steps(self, step: str | None = None) -> list[dict[str, Any]]:
        """Return what workers logged, of one kind if named."""
        if not self.log.exists():
            return []
        *lines, _ = self.log.read_text().split("\n")  # the last one may be half written
        entries: list[dict[str, Any]] = [json.loads(line) for line in lines]
        return [entry for entry in entries if step is None or entry["step"] == step]

    async def wait_steps(self, step: str, count: int, timeout: float = DEADLINE) -> list[dict[str, Any]]:
        """Wait until workers logged `count` entries of a kind."""
        await eventually(lambda: len(self.steps(step)) >= count, timeout, message=f"{count} x {step}")
        return self.steps(step)

    async def dead(self, bus: Bus, count: int, timeout: float = DEADLINE) -> list[StoredDeadLetter]:
        """Wait until there are `count` dead letters, and return them."""
        found: list[StoredDeadLetter] = []

        async def enough() -> bool:
            found[:] = await bus.broker.dead_letters(count + 100, 5.0)
            return len(found) >= count

        await wait_until(enough, timeout, message=f"{count} dead letters")
        assert len(found) == count, f"{len(found)} dead letters, not {count}"
        return found

    async def wait_empty(self, bus: Bus, *names: str, timeout: float = DEADLINE) -> None:
        """Wait until nothing is stored for the subscriptions any more."""

        async def empty() -> bool:
            queues = {queue.name: queue for queue in await bus.broker.queues(5.0)}
            found = [queues[name] for name in names if name in queues]
            return len(found) == len(names) and not any(
                queue.ready or queue.unsettled or queue.delayed for queue in found
            )

        await wait_until(empty, timeout, message=f"{names} to be empty")

    async def aclose(self) -> None:
        """End what the test started."""
        for worker in self._workers:
            await worker.aclose()
        for bus in self._buses:
            await bus.aclose()
        assert self._leaks == [], "monitors of sessions that are gone"


async def wait_until(ask: Callable[[], Awaitable[bool]], timeout: float = DEADLINE, *, message: str = "") -> None:
    """Ask a broker again and again until the answer is yes."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + timeout
    while not await ask():
        assert clock() < deadline, f"{message or 'the condition'} did not come true within {timeout:g} s"
        await asyncio.sleep(0.05)


async def wait_acked(subscription: Subscription[..., Any], count: int, timeout: float = DEADLINE) -> None:
    """Wait until a subscription acked `count` deliveries in this process."""
    await eventually(lambda: subscription.stats().acked >= count, timeout, message=f"{count} acks")


def _becomes_free(place: BrokerUrl) -> bool:
    """Tell whether the write lock, and the one in front of it, are let go within half a second."""
    assert isinstance(place, SqliteUrl)
    until = time.monotonic() + 0.5
    for path in (f"{place.path}-lock-turn", f"{place.path}-lock"):
        with Path(path).open("rb") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        return False
                    time.sleep(0.005)
    return True
