"""Another process on the same file: ``python -m tests.brokers.sqlite.peer ROLE PATH ...``. Says a line a step."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import sys
import time
from pathlib import Path

from signalbus.brokers.base import SubscriptionSpec
from signalbus.brokers.sqlite import SqliteBroker
from signalbus.brokers.sqlite.lock import FairLock
from signalbus.config import SqliteUrl
from signalbus.delivery import ACK
from signalbus.errors import BrokerError
from tests.brokers.sqlite.support import SECONDS, WORK, data_of, session, signal


def say(line: object) -> None:
    print(line, flush=True)


async def told() -> None:
    await asyncio.to_thread(sys.stdin.readline)


async def open_broker(path: Path) -> SqliteBroker:
    broker = SqliteBroker(SqliteUrl(path=path, min_free_bytes=0))
    await broker.open(session(), SECONDS)
    await broker.declare(WORK, SECONDS)
    return broker


async def hold(path: Path, count: str) -> None:
    """Receive deliveries and keep them; close in good order when told."""
    broker = await open_broker(path)
    consumer = await broker.consume(WORK.name, 100, SECONDS)
    held = 0
    while held < int(count):
        held += len(await consumer.receive())
    say("holding")
    await told()
    await broker.aclose()
    say("closed")


async def fork_and_hold(path: Path) -> None:
    """Receive one delivery, leave a child behind, and hold."""
    broker = await open_broker(path)
    consumer = await broker.consume(WORK.name, 100, SECONDS)
    await consumer.receive()
    child = os.fork()
    if child == 0:
        time.sleep(60.0)  # noqa: ASYNC251 - a child without an event loop
        os._exit(0)
    say(f"holding {child}")
    await told()


async def linger(path: Path) -> None:
    """Serve a temporary subscription."""
    broker = await open_broker(path)
    await broker.declare(SubscriptionSpec(name="passing", patterns=("passing",), durable=False), SECONDS)
    await broker.consume("passing", 10, SECONDS)
    say("serving")
    await told()


async def publish(path: Path, first: str, count: str) -> None:
    """Publish numbers, and say each that is confirmed."""
    broker = await open_broker(path)
    say("ready")
    for number in range(int(first), int(first) + int(count)):
        try:
            (outcome,) = await broker.publish([signal(number)], SECONDS)
        except BrokerError as error:
            say(f"{type(error).__name__}")
            await asyncio.sleep(0.02)
        else:
            say(number if outcome.result == "confirmed" else outcome.result.value)
    await broker.aclose()


async def handle(path: Path) -> None:
    """Ack whatever comes; say so before, and once that is stored."""
    broker = await open_broker(path)
    consumer = await broker.consume(WORK.name, 5, SECONDS)
    say("ready")
    while True:
        for incoming in await consumer.receive():
            say(f"settling {data_of(incoming)}")
            if await consumer.settle(incoming, ACK):
                say(data_of(incoming))


async def echo(path: Path) -> None:
    """Publish ``reply`` for each signal on ``ask``, at once."""
    broker = await open_broker(path)
    await broker.declare(SubscriptionSpec(name="asked", patterns=("ask",)), SECONDS)
    consumer = await broker.consume("asked", 10, SECONDS)
    say("ready")
    while True:
        for incoming in await consumer.receive():
            await broker.publish([signal(data_of(incoming), "reply")], SECONDS)
            await consumer.settle(incoming, ACK)


async def compete(path: Path, seconds: str) -> None:
    """Commit small transactions as fast as the lock allows; say how many, and the longest wait."""
    broker = await open_broker(path)
    say("ready")
    await told()
    count, longest = 0, 0.0
    end = time.monotonic() + float(seconds)
    while (begun := time.monotonic()) < end:
        await broker.publish([signal(count)], 60.0)
        count += 1
        longest = max(longest, time.monotonic() - begun)
    say(f"{count} {longest}")
    await broker.aclose()


def lock(path: Path) -> None:
    """Hold the write lock until told."""
    held = FairLock()
    held.open(f"{path}-lock")
    with held:
        say("locked")
        sys.stdin.readline()
    held.close()
    say("released")


def exclude(path: Path) -> None:
    """Hold the database with SQLite's own lock, as a foreign program may, until told."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    say("locked")
    sys.stdin.readline()
    connection.execute("ROLLBACK")
    connection.close()
    say("released")


def read(path: Path) -> None:
    """Keep a read transaction open until told."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN")
    connection.execute("SELECT count(*) FROM signals").fetchone()
    say("reading")
    sys.stdin.readline()
    connection.execute("ROLLBACK")
    connection.close()
    say("released")


def count_locks(path: Path, rounds: str) -> None:
    """Take the write lock again and again; say "overlap" if somebody else has it at the same time."""
    held = FairLock()
    held.open(f"{path}-lock")
    probe = os.open(f"{path}-probe", os.O_RDWR | os.O_CREAT, 0o600)
    say("ready")
    sys.stdin.readline()
    for _ in range(int(rounds)):
        with held:
            try:
                fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("overlap")
                return
            fcntl.flock(probe, fcntl.LOCK_UN)
    say("done")


ASYNC_ROLES = {role.__name__: role for role in (hold, fork_and_hold, linger, publish, handle, echo, compete)}
ROLES = {role.__name__: role for role in (lock, exclude, read, count_locks)}


def main() -> None:
    role, path, *arguments = sys.argv[1:]
    if role in ROLES:
        ROLES[role](Path(path), *arguments)
    else:
        asyncio.run(ASYNC_ROLES[role](Path(path), *arguments))


if __name__ == "__main__":
    main()
