"""Requests and replies: latency one at a time, throughput with many callers, and how soon it is known that there is
no answer. On RabbitMQ against FastStream's ``request`` and aio-pika's RPC on the same node, in turns.

The responder is a process of its own that echoes 256 bytes; the requester is this one. As a program: the responder.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import aio_pika
from aio_pika.patterns import RPC

from signalbus import Bus, NoResponder, ResponderDown

from .embedded import database
from .figures import Benchmark, BenchmarkError, Leg, Readings, Target, at_least, at_most, below
from .load import BODY, publish_all
from .plan import Plan
from .processes import child, say, wait_told_to_end
from .turns import Turns

SUBJECT = "signalbus"
FASTSTREAM = "FastStream"
AIO_PIKA = "aio-pika RPC"
CALLERS = 50
WARM_UP = 50
SHARES = {"p50": 0.5, "p99": 0.99}
DEATHS = 5  # responders killed, a start of a process each

Call = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Caller:
    """A library that makes requests: ``connected`` yields one call."""

    name: str
    connected: Callable[[str, str], AbstractAsyncContextManager[Call]]


@asynccontextmanager
async def _signalbus(url: str, name: str) -> AsyncIterator[Call]:
    async with Bus(url, name="requester") as bus:
        yield lambda: bus.request(name, BODY, reply=bytes)


@asynccontextmanager
async def _faststream(url: str, name: str) -> AsyncIterator[Call]:
    from faststream.rabbit import RabbitBroker

    broker = RabbitBroker(url, logger=None)
    await broker.connect()
    try:
        yield lambda: broker.request(BODY, queue=name, timeout=30)
    finally:
        await broker.stop()


@asynccontextmanager
async def _aio_pika(url: str, name: str) -> AsyncIterator[Call]:
    async with await aio_pika.connect(url) as connection:
        rpc = await RPC.create(await connection.channel())
        yield lambda: rpc.call(name, {"body": BODY})
        await rpc.close()


CALLERS_OF = {caller.name: caller for caller in (Caller(SUBJECT, _signalbus), Caller(FASTSTREAM, _faststream))}
CALLERS_OF[AIO_PIKA] = Caller(AIO_PIKA, _aio_pika)


def benchmarks(plan: Plan) -> list[Benchmark]:
    """Return the benchmarks of requests, on SQLite and on RabbitMQ if there is one."""
    count = plan.sizes.requests

    async def embedded() -> Readings:
        with database(plan.directory) as path:
            return {SUBJECT: [(await _times_ms(CALLERS_OF[SUBJECT], f"sqlite:///{path}", count))["p50"]]}

    async def embedded_rate() -> Readings:
        with database(plan.directory) as path:
            return {SUBJECT: [await _rate(CALLERS_OF[SUBJECT], f"sqlite:///{path}", count)]}

    async def embedded_errors() -> Readings:
        with database(plan.directory) as path:
            return await _errors(f"sqlite:///{path}")

    found = [
        _benchmark(
            "embedded.request", "SQLite: a request between processes, p50", "ms", [embedded], {SUBJECT: below(2.0)}
        ),
        _benchmark("embedded.callers", f"SQLite: requests with {CALLERS} callers", "requests/s", [embedded_rate], {}),
        _errors_benchmark("embedded", "SQLite", embedded_errors),
    ]
    if plan.amqp_url is None:
        return found
    url = plan.amqp_url

    def rate(caller: Caller) -> Leg:
        async def leg() -> Readings:
            return {caller.name: [await _rate(caller, url, count)]}

        return leg

    async def errors() -> Readings:
        return await _errors(url)

    installed = importlib.util.find_spec("faststream") is not None
    callers = [caller for caller in CALLERS_OF.values() if caller.name != FASTSTREAM or installed]
    turns = [Turns(caller.name, functools.partial(_times_ms, caller, url, count)) for caller in callers]
    quick = {caller.name: at_most(1.0) for caller in callers if caller.name != SUBJECT}
    return [
        *found,
        *(
            _benchmark(
                f"rabbitmq.request{'' if share == 'p50' else '_' + share}",
                f"RabbitMQ: a request between processes, {share}",
                "ms",
                [turn.leg(share) for turn in turns],
                quick,
            )
            for share in SHARES
        ),
        _benchmark(
            "rabbitmq.callers",
            f"RabbitMQ: requests with {CALLERS} callers",
            "requests/s",
            [rate(caller) for caller in callers],
            {FASTSTREAM: at_least(10.0), AIO_PIKA: at_least(3.0)},
        ),
        _errors_benchmark("rabbitmq", "RabbitMQ", errors),
    ]


def _benchmark(name: str, title: str, unit: str, legs: list[Leg], targets: dict[str, Target]) -> Benchmark:
    return Benchmark(name=name, title=title, unit=unit, subject=SUBJECT, legs=tuple(legs), targets=targets)


def _errors_benchmark(broker: str, title: str, leg: Leg) -> Benchmark:
    return Benchmark(
        name=f"{broker}.no_answer",
        title=f"{title}: until it is known that there is no answer",
        unit="ms",
        subject=NoResponder.__name__,
        legs=(leg,),
        targets={NoResponder.__name__: below(20.0), ResponderDown.__name__: below(100.0)},
        compared=False,
        once=True,
    )


@asynccontextmanager
async def _calling(caller: Caller, url: str) -> AsyncIterator[Call]:
    name = f"bench.echo.n{secrets.token_hex(4)}"
    async with child("calls", caller.name, url, name) as responder:
        await responder.report()
        async with caller.connected(url, name) as call:
            await publish_all(call, WARM_UP, 1)
            yield call


async def _times_ms(caller: Caller, url: str, count: int) -> Mapping[str, float]:
    async with _calling(caller, url) as call:
        times: list[float] = []
        for _ in range(count):
            started = time.perf_counter()
            await call()
            times.append(1000 * (time.perf_counter() - started))
    times.sort()
    return {name: times[int(len(times) * share)] for name, share in SHARES.items()}


async def _rate(caller: Caller, url: str, count: int) -> float:
    async with _calling(caller, url) as call:
        return await publish_all(call, count * 2, CALLERS)


async def _errors(url: str) -> Readings:
    """Ask where nobody responds, and kill responders that have the request."""
    nobody: list[float] = []
    down: list[float] = []
    async with Bus(url, name="requester") as bus:
        for number in range(WARM_UP):
            started = time.perf_counter()
            try:
                await bus.request("bench.nobody", number)
            except NoResponder:
                nobody.append(1000 * (time.perf_counter() - started))
        for _ in range(DEATHS):
            name = f"bench.hold.n{secrets.token_hex(4)}"
            async with child("calls", "hold", url, name) as responder:
                (pid,) = await responder.report()
                asked = asyncio.create_task(bus.request(name, 1))
                await responder.report()  # it has the request
                killed = time.perf_counter()
                os.kill(int(pid), signal.SIGKILL)
                try:
                    await asked
                except ResponderDown:
                    down.append(1000 * (time.perf_counter() - killed))
    if len(nobody) < WARM_UP or len(down) < DEATHS:
        raise BenchmarkError(f"{len(nobody)} NoResponder and {len(down)} ResponderDown, fewer than were provoked")
    return {NoResponder.__name__: nobody, ResponderDown.__name__: down}


# The responders


async def _respond_signalbus(url: str, name: str) -> None:
    bus = Bus(url, name="responder")

    @bus.respond(name)
    async def echo(data: bytes) -> bytes:
        return data

    async with bus:
        say(os.getpid())
        await wait_told_to_end()


async def _respond_hold(url: str, name: str) -> None:
    bus = Bus(url, name="responder")

    @bus.respond(name)
    async def hold(data: int) -> None:
        say(1)
        await asyncio.get_running_loop().create_future()

    async with bus:
        say(os.getpid())
        await wait_told_to_end()


async def _respond_faststream(url: str, name: str) -> None:
    from faststream.rabbit import RabbitBroker, RabbitQueue

    broker = RabbitBroker(url, logger=None)

    @broker.subscriber(RabbitQueue(name, durable=True, auto_delete=True))
    async def echo(body: bytes) -> bytes:
        return body

    await broker.start()
    say(os.getpid())
    await wait_told_to_end()
    await broker.stop()


async def _respond_aio_pika(url: str, name: str) -> None:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=100)
        rpc = await RPC.create(channel)

        async def echo(*, body: bytes) -> bytes:
            return body

        await rpc.register(name, echo, durable=True, auto_delete=True)
        say(os.getpid())
        await wait_told_to_end()


RESPONDERS = {
    SUBJECT: _respond_signalbus,
    "hold": _respond_hold,
    FASTSTREAM: _respond_faststream,
    AIO_PIKA: _respond_aio_pika,
}

if __name__ == "__main__":
    asyncio.run(RESPONDERS[sys.argv[1]](sys.argv[2], sys.argv[3]))
