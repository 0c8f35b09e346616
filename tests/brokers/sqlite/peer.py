"""Another process on the same file: ``python -m tests.brokers.sqlite.peer ROLE PATH ...``. Says a line a step."""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import sqlite3
import sys
import time
from pathlib import Path

from signalbus.brokers.base import AnswerKind, IncomingRequest, Responder, SubscriptionSpec
from signalbus.brokers.sqlite import SqliteBroker, census
from signalbus.brokers.sqlite.lock import FairLock
from signalbus.brokers.sqlite.sessions import SessionLock
from signalbus.brokers.sqlite.store import touch_topology
from signalbus.config import SqliteUrl
from signalbus.deadletters import LetterQuery
from signalbus.delivery import ACK
from signalbus.errors import BrokerError
from signalbus.sessions import DownReason
from tests.brokers.sqlite.support import SECONDS, WORK, Said, data_of, reply, session, signal


def say(line: object) -> None:
    print(line, flush=True)


async def told() -> str:
    line: str = await asyncio.to_thread(sys.stdin.readline)
    return line.strip()


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


async def replay(path: Path) -> None:
    """Replay all dead letters, one a second."""
    broker = await open_broker(path)
    letters = await broker.letters(SECONDS)
    replay = await letters.replay(LetterQuery(), by="peer", rate=1.0)
    say(f"{replay.id} {replay.total}")
    await told()


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


async def sit(path: Path, count: str = "1") -> None:
    """Open sessions and say their names; close in good order when told, as given up if told so.

    The process stays, so that its end tells nobody of theirs.
    """
    brokers: list[SqliteBroker] = []
    for _ in range(int(count)):
        info = session()
        broker = SqliteBroker(SqliteUrl(path=path, min_free_bytes=0, durability="normal"))
        await broker.open(info, SECONDS, Said(info.id))
        brokers.append(broker)
        say(info.id)
    reason = await told()
    await asyncio.gather(*(broker.aclose(DownReason(reason or "normal")) for broker in brokers))
    say("closed")
    await told()


async def watch(path: Path, *sessions: str) -> None:
    """Watch sessions; say how each ended."""
    broker = await open_broker(path)
    futures = [await broker.watch(name, SECONDS) for name in sessions]
    say("watching")
    for future in asyncio.as_completed(futures):
        down = await future
        say(f"{down.session} {down.reason}")


async def respond(path: Path, behaviour: str, concurrency: str = "100", backlog: str = "100") -> None:
    """Respond to ``ask``: echo, hold, die at once, or answer and die.

    Commands: answer, stop, aclose, close, and block: the event loop, for three seconds.
    """
    info = session()
    broker = SqliteBroker(SqliteUrl(path=path, min_free_bytes=0))
    await broker.open(info, SECONDS, Said(info.id))
    responder = await broker.respond("ask", int(concurrency), int(backlog), SECONDS)
    held: list[IncomingRequest] = []
    serving = asyncio.create_task(_serve_requests(responder, behaviour, held))
    say(info.id)
    while command := await told():
        match command:
            case "answer":
                for request in held:
                    say(f"answered {await responder.answer(request, reply(request))}")
                held.clear()
            case "stop":
                await responder.stop()
                say("stopped")
            case "aclose":
                await responder.aclose()
                say("closed")
            case "block":
                say("blocked")
                time.sleep(3.0)  # noqa: ASYNC251 - what a bad handler does
            case _:
                break
    await broker.aclose()
    await serving
    say("closed")


async def _serve_requests(responder: Responder, behaviour: str, held: list[IncomingRequest]) -> None:
    while received := await responder.receive():
        for request in received:
            if behaviour != "echo":
                say(f"got {request.signal.body.decode()} {request.redelivered}")
            if behaviour == "hold":
                held.append(request)
                continue
            if behaviour == "die":
                os.kill(os.getpid(), 9)
            await responder.answer(request, reply(request))
            if behaviour == "answer_and_die":
                os.kill(os.getpid(), 9)


async def fork_and_respond(path: Path) -> None:
    """Respond to ``ask``, and leave a child behind that does nothing."""
    broker = await open_broker(path)
    responder = await broker.respond("ask", 10, 10, SECONDS)
    held: list[IncomingRequest] = []
    serving = asyncio.create_task(_serve_requests(responder, "hold", held))
    say("ready")
    await told()
    begun, beginning = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(beginning, b"x")
        time.sleep(60.0)  # noqa: ASYNC251 - a child without an event loop
        os._exit(0)
    os.read(begun, 1)
    say(str(child))
    await told()
    await broker.aclose()
    await serving


async def ask(path: Path, seconds: str) -> None:
    """Send one request; say how it ended."""
    broker = await open_broker(path)
    say("asking")
    answer = await broker.request(signal("q", "ask"), float(seconds))
    say(answer.kind.value)
    await broker.aclose()


async def flood(path: Path, seconds: str) -> None:
    """Send requests until the time is over; say how many had a reply, or what else came."""
    broker = await open_broker(path)
    say("ready")
    await told()
    end = time.monotonic() + float(seconds)
    count = 0
    while time.monotonic() < end:
        answer = await broker.request(signal("q", "ask"), SECONDS)
        count += answer.kind is AnswerKind.REPLY
    say(str(count))
    await broker.aclose()


def mayflies(path: Path, count: str, seed: str) -> None:
    """Register sessions, say their names, and end them as many seconds later as told.

    In good order, or with nothing but their lock gone.
    """
    chance = random.Random(int(seed))
    turn = FairLock()
    turn.open(f"{path}-lock")
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute("PRAGMA synchronous = OFF")
    for number in range(int(count)):
        held = SessionLock(Path(f"{path}-sessions"))
        name = f"mayfly-{seed}-{number}"
        with turn:
            connection.execute("BEGIN IMMEDIATE")
            row = (held.token, "", "", 0, name, "mayfly", "here", os.getpid(), "0", "", 1)
            registered = census.insert_session(connection, row)
            touch_topology(connection)
            connection.execute("COMMIT")
        say(name)
        time.sleep(float(sys.stdin.readline()))
        if chance.random() < 0.5:
            with turn:
                connection.execute("BEGIN IMMEDIATE")
                census.end_session(connection, registered, "normal", time.time(), crashed=False)
                connection.execute("COMMIT")
            held.close()
        else:
            held.forget()
    turn.close()
    connection.close()


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


_ASYNC = (hold, replay, fork_and_hold, linger, publish, handle, echo, compete)
_ASYNC_SESSIONS = (sit, watch, respond, fork_and_respond, ask, flood)
ASYNC_ROLES = {role.__name__: role for role in (*_ASYNC, *_ASYNC_SESSIONS)}
ROLES = {role.__name__: role for role in (lock, exclude, read, count_locks, mayflies)}


def main() -> None:
    role, path, *arguments = sys.argv[1:]
    if role in ROLES:
        ROLES[role](Path(path), *arguments)
    else:
        asyncio.run(ASYNC_ROLES[role](Path(path), *arguments))


if __name__ == "__main__":
    main()
