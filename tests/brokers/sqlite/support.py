"""Brokers on one file, and other processes that use it, hold it or die on it."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from signalbus.brokers.base import (
    Answer,
    AnswerKind,
    Host,
    Incoming,
    IncomingRequest,
    PublishOutcome,
    QueueInfo,
    SubscriptionSpec,
)
from signalbus.brokers.sqlite import SqliteBroker, watcher, writer
from signalbus.brokers.sqlite.clock import Clock
from signalbus.brokers.sqlite.consumer import SqliteConsumer
from signalbus.codec import EncodedSignal, encode
from signalbus.config import SqliteUrl
from signalbus.sessions import SessionInfo
from signalbus.signals import Signal
from tests.stopping import stop

if TYPE_CHECKING:
    import pytest  # not for peers, which would start later

ROOT = Path(__file__).parents[3]
SECONDS = 10.0  # for each step that should take milliseconds
_START_SECONDS = 60.0  # for a process to begin: what it imports takes half a second, and twenty times that if many do
WORK = SubscriptionSpec(name="work", patterns=("work.#",))

_LOOKS = ((watcher, "_LOOK_SECONDS"), (writer, "_POLL_SECONDS"), (writer, "_SWEEP_SECONDS"), (writer, "_LOOP_SECONDS"))


def session() -> SessionInfo:
    return SessionInfo(
        id=uuid.uuid4().hex, name="test", host="here", pid=os.getpid(), version="0", started=datetime.now(UTC)
    )


def signal(data: object = "x", type: str = "work.item") -> EncodedSignal:  # noqa: A002
    return encode(Signal(type=type, source="test", data=data))


def signals(count: int) -> list[EncodedSignal]:
    return [signal(number) for number in range(count)]


def results(outcomes: Sequence[PublishOutcome]) -> list[str]:
    return [outcome.result.value for outcome in outcomes]


def data_of(incoming: Incoming) -> Any:
    return json.loads(incoming.signal.body)


def reply(request: IncomingRequest) -> Answer:
    """The answer of an echo."""
    return Answer(AnswerKind.REPLY, request.signal.body, request.signal.content_type)


class Said:
    """A host that says its name, and keeps what it is told."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.taken: list[bytes] = []
        self.incarnations: list[SessionInfo] = []

    def report(self) -> bytes:
        return self.name.encode()

    def take(self, message: bytes) -> None:
        self.taken.append(message)

    def renewed(self, session: SessionInfo) -> None:
        self.incarnations.append(session)


def look_only(monkeypatch: pytest.MonkeyPatch, *kept: str) -> None:
    """Have brokers of this process look for what others did in the ways named, and in no other of their own accord.

    So what they notice they were told, or found in that way: however slow the machine, nothing else explains it.
    Before they are opened.
    """
    for module, name in _LOOKS:
        if name not in kept:
            monkeypatch.setattr(module, name, 3_600.0)


async def idle_share() -> float:
    """Return the share of a processor that this process uses while the test waits: the least of three measurements.

    Without the garbage collector, which would go through all that pytest has in memory.
    """
    await asyncio.sleep(0.2)  # for what was begun to end
    gc.collect()
    gc.freeze()
    try:
        return min([await _share(1.0) for _ in range(3)])
    finally:
        gc.unfreeze()


async def _share(seconds: float) -> float:
    used, begun = time.process_time(), time.monotonic()
    await asyncio.sleep(seconds)
    return (time.process_time() - used) / (time.monotonic() - begun)


async def settled(broker: SqliteBroker) -> SqliteBroker:
    """Wait until a broker has looked after its files for the first time; the next time is a second later."""
    await broker.queues(SECONDS)
    return broker


def remove_sockets(broker: SqliteBroker) -> None:
    """Tidy up what is in use."""
    assert broker._desk is not None
    for path in (broker._desk.socket, broker._desk.address):
        Path(path).unlink()


async def receive(consumer: SqliteConsumer, count: int = 1, timeout: float = SECONDS) -> list[Incoming]:
    """Receive `count` deliveries, in however many batches."""
    received: list[Incoming] = []
    async with asyncio.timeout(timeout):
        while len(received) < count:
            batch = await consumer.receive()
            assert batch, "the consumer has stopped"
            received.extend(batch)
    assert len(received) == count
    return received


async def wait_until(ask: Callable[[], Awaitable[bool]], timeout: float = SECONDS) -> None:
    """Ask again and again until the answer is yes."""
    async with asyncio.timeout(timeout):
        while not await ask():  # noqa: ASYNC110 - what is asked is in a file
            await asyncio.sleep(0.02)


class Place:
    """A database file of one test, and everything opened on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.url = SqliteUrl(path=directory / "bus.db", min_free_bytes=0, busy_timeout=SECONDS)
        self._brokers: list[SqliteBroker] = []
        self._peers: list[Peer] = []

    @property
    def path(self) -> Path:
        return self.url.path

    @property
    def wal(self) -> Path:
        return Path(f"{self.path}-wal")

    @property
    def shm(self) -> Path:
        return Path(f"{self.path}-shm")

    @property
    def sessions(self) -> Path:
        return Path(f"{self.path}-sessions")

    async def open(
        self, *, clock: Clock | None = None, host: Host | None = None, info: SessionInfo | None = None, **options: Any
    ) -> SqliteBroker:
        broker = SqliteBroker(replace(self.url, **options), clock=clock)
        self._brokers.append(broker)
        await broker.open(info or session(), SECONDS, host)
        return broker

    async def entered(self, **options: Any) -> tuple[SqliteBroker, SessionInfo]:
        """Open a broker, and return its session with it."""
        info = session()
        return await self.open(info=info, **options), info

    async def serving(self, *, prefetch: int = 10, **options: Any) -> tuple[SqliteBroker, SqliteConsumer]:
        """Open a broker that serves `WORK`."""
        broker = await self.open(**options)
        await broker.declare(WORK, SECONDS)
        return broker, await broker.consume(WORK.name, prefetch, SECONDS)

    async def queue(self, broker: SqliteBroker, name: str = WORK.name) -> QueueInfo:
        (found,) = [queue for queue in await broker.queues(SECONDS) if queue.name == name]
        return found

    def peer(self, role: str, *arguments: object) -> Peer:
        """Start another process; see `tests.brokers.sqlite.peer`."""
        peer = Peer(role, self.path, *arguments)
        self._peers.append(peer)
        return peer

    @contextmanager
    def raw(self) -> Iterator[sqlite3.Connection]:
        """The database as any other program sees it. Never while a broker of this process has it open:
        closing a connection is safe, but SQLite checkpoints when it believes to be the last."""
        connection = sqlite3.connect(self.path, isolation_level=None)
        try:
            yield connection
        finally:
            connection.close()

    async def aclose(self) -> None:
        for peer in self._peers:
            peer.end()
        for broker in self._brokers:
            await broker.aclose()


class Peer:
    """A process that says a line for each step, and goes on when told a line."""

    def __init__(self, role: str, path: Path, *arguments: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.brokers.sqlite.peer", role, str(path), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.pid = self._process.pid
        self._begun = False

    async def line(self, timeout: float = SECONDS) -> str:
        """Return the next line it says, an empty one at its end. The first one may take as long as a process does."""
        assert self._process.stdout is not None
        async with asyncio.timeout(timeout if self._begun else max(timeout, _START_SECONDS)):
            said = await asyncio.to_thread(self._process.stdout.readline)
        self._begun = True
        return said.strip()

    def tell(self, line: str = "") -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    async def stop(self) -> None:
        """SIGSTOP, and wait until no thread of it runs."""
        await stop(self.pid)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._process.kill()
        self._process.wait()

    async def wait(self, timeout: float = SECONDS) -> int:
        return await asyncio.to_thread(self._process.wait, timeout)

    def end(self) -> None:
        self.kill()
        for end in (self._process.stdin, self._process.stdout):
            if end is not None:
                end.close()
