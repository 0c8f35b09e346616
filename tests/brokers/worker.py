"""A process that subscribes or publishes, and can be killed: ``python -m tests.brokers.worker JOB``.

Every step is a line in the log, written with one system call before the next step begins, so that it outlives
a kill -9 at any point.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from contextlib import AsyncExitStack
from datetime import timedelta

from signalbus import Bus, Delivery, PublishUnconfirmed, RetryPolicy, Signal, SignalBusError
from tests.brokers.world import Job
from tests.support import eventually


class Log:
    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def __call__(self, step: str, **fields: object) -> None:
        line = json.dumps({"step": step, "pid": os.getpid(), "at": time.monotonic(), **fields})
        os.write(self._descriptor, f"{line}\n".encode())


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def subscribe(job: Job, log: Log) -> None:
    bus = make_bus(job)
    deaths = 0

    async def handle(data: object, delivery: Delivery) -> None:
        nonlocal deaths
        log("start", data=data, attempt=delivery.attempt, crashes=delivery.crashes, id=delivery.id)
        fatal = data == "fatal" or (isinstance(data, dict) and data.get("fatal"))
        match job.behaviour:
            case "hold":
                await asyncio.Event().wait()
            case "die-on-fatal" if fatal:
                die()
            case "die-before-effect":
                die()
            case "fail":
                raise ValueError("as told")
            case "block":
                time.sleep(job.seconds)  # noqa: ASYNC251 - the fault to be shown
            case "sleep":
                await asyncio.sleep(job.seconds)
            case _:
                pass
        log("effect", data=data, attempt=delivery.attempt, crashes=delivery.crashes, id=delivery.id)
        if job.behaviour == "die-after-effect":
            die()

    subscription = bus.subscribe(
        *job.patterns,
        handler=handle,
        name=job.name,
        concurrency=job.concurrency,
        prefetch=job.prefetch,
        durable=job.durable,
        max_crashes=job.max_crashes,
        retry=RetryPolicy(max_attempts=job.max_attempts, initial=timedelta(seconds=0.05), jitter=False),
    )
    async with bus:
        say_ready(bus)
        if job.behaviour == "die-after-ack":
            await eventually(lambda: subscription.stats().acked, interval=0.001)
            die()
        await wait_stdin_closed()


async def publish(job: Job, log: Log) -> None:
    """Publish ``count`` numbered signals; the log says invoke, then ok, fail or info, as Jepsen's histories do."""
    async with make_bus(job) as bus:
        say_ready(bus)
        for number in range(job.first, job.first + job.count):
            signal_ = Signal(type="work.item", data=number, source="worker")
            log("invoke", data=number, id=signal_.id)
            try:
                await bus.publish(signal_)
            except PublishUnconfirmed:
                log("info", data=number)
            except SignalBusError as error:
                log("fail", data=number, error=repr(error))
            else:
                if job.behaviour == "die-after-confirm":
                    die()
                log("ok", data=number)
        log("done")
        await wait_stdin_closed()


async def respond(job: Job, log: Log) -> None:
    """Respond to the type ``name``, and to ``inner`` with an echo."""
    bus = make_bus(job)

    @bus.respond(job.name, concurrency=job.concurrency, backlog=job.backlog, idempotent=job.idempotent)
    async def answer(data: object, delivery: Delivery) -> object:
        log("start", data=data, id=delivery.id, redelivered=delivery.redelivered)
        match job.behaviour:
            case "hold":
                await asyncio.Event().wait()
            case "die-before-effect":
                die()
            case "die-on-fatal" if data == "fatal":
                die()
            case "block":
                time.sleep(job.seconds)  # noqa: ASYNC251 - the fault to be shown
            case "sleep":
                await asyncio.sleep(job.seconds)
            case "nested":
                return await bus.request("inner", data, timeout=job.timeout)
            case _:
                pass
        log("effect", data=data, id=delivery.id)
        if job.behaviour == "die-after-effect":
            die()
        return {"data": data, "pid": os.getpid()}

    @bus.respond("inner", concurrency=1)
    async def inner(data: object) -> object:
        return {"inner": data}

    async with bus:
        say_ready(bus)
        await wait_stdin_closed()


async def request(job: Job, log: Log) -> None:
    """Send ``count`` requests of the type ``name``, one after the other."""
    async with make_bus(job) as bus:
        say_ready(bus)
        for number in range(job.first, job.first + job.count):
            log("asked", data=number)
            try:
                reply = await bus.request(job.name, number, timeout=job.timeout)
            except SignalBusError as error:
                log("error", data=number, error=type(error).__name__)
            else:
                log("reply", data=number, reply=reply)
        await wait_stdin_closed()


async def crowd(job: Job, log: Log) -> None:
    """Open ``count`` buses, each with a temporary subscription and a responder."""
    async with AsyncExitStack() as stack:
        buses = [member(job, number) for number in range(job.count)]
        for start in range(0, job.count, 10):
            await asyncio.gather(*(stack.enter_async_context(bus) for bus in buses[start : start + 10]))
        say_ready(buses[0])
        await wait_stdin_closed()


def member(job: Job, number: int) -> Bus:
    """Return one bus of a crowd."""
    bus = make_bus(job)

    @bus.subscribe("crowd.#", name=f"crowd-{os.getpid()}-{number}", durable=False)
    async def ignore(data: object) -> None: ...

    @bus.respond("crowd")
    async def answer(data: object) -> None: ...

    return bus


async def watch(job: Job, log: Log) -> None:
    """Monitor the session ``target``."""
    async with make_bus(job) as bus:
        monitor = await bus.monitor(job.target)
        say_ready(bus)
        closed = asyncio.create_task(wait_stdin_closed())
        down = asyncio.ensure_future(monitor.down)
        await asyncio.wait({closed, down}, return_when=asyncio.FIRST_COMPLETED)
        if down.done():
            log("down", session=down.result().session, reason=down.result().reason)
        down.cancel()
        await closed


def make_bus(job: Job) -> Bus:
    settings = {"name": "worker", "connect_timeout": 20.0, "publish_timeout": 5.0, "drain_timeout": 2.0, **job.options}
    return Bus(job.url, **settings)


def say_ready(bus: Bus) -> None:
    print(f"ready {bus.session.id}", flush=True)


async def wait_stdin_closed() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    try:
        await reader.read()
    finally:
        transport.close()


ROLES = {
    "subscribe": subscribe,
    "publish": publish,
    "respond": respond,
    "request": request,
    "crowd": crowd,
    "watch": watch,
}


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    log = Log(job.log)
    asyncio.run(ROLES[job.role](job, log))


if __name__ == "__main__":
    main()
