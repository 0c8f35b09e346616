"""Another process at the same broker: ``python -m tests.brokers.rabbitmq.peer ROLE URL ...``. Says a line a step."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from datetime import timedelta

from signalbus.brokers.base import Answer, AnswerKind, IncomingRequest, Responder, SubscriptionSpec
from signalbus.brokers.rabbitmq import RabbitBroker
from signalbus.codec import EncodedSignal
from signalbus.sessions import Down
from tests.brokers.rabbitmq.conftest import TIMEOUT, broker_for, receive, session, signal


def say(*words: object) -> None:
    print(*words, flush=True)


async def told() -> str:
    line: str = await asyncio.to_thread(sys.stdin.readline)
    return line.strip()


async def opened(url: str) -> RabbitBroker:
    broker = broker_for(url, "heartbeat=4&backoff_cap=1")
    await broker.open(session(), TIMEOUT)
    return broker


async def live(url: str, count: str) -> None:
    """Be so many sessions until told; then close in good order."""
    brokers = [broker_for(url, "heartbeat=4&backoff_cap=1") for _ in range(int(count))]
    infos = [session() for _ in brokers]
    for broker, info in zip(brokers, infos, strict=True):
        await broker.open(info, TIMEOUT)
    say("live", *(info.id for info in infos))
    await told()
    await asyncio.gather(*(broker.aclose() for broker in brokers))
    say("closed")


async def hold(url: str, count: str) -> None:
    """Serve the subscription ``work`` and hold so many deliveries."""
    broker = broker_for(url, "heartbeat=4&backoff_cap=1")
    info = session()
    await broker.open(info, TIMEOUT)
    await broker.declare(SubscriptionSpec(name="work", patterns=("order.*",)), TIMEOUT)
    consumer = await broker.consume("work", 100, TIMEOUT)
    say("serving", info.id)
    await receive(consumer, int(count))
    say("holding")
    await told()
    await broker.aclose()


async def respond(url: str, request_type: str, behaviour: str) -> None:
    """Respond: ``echo`` answers with the data, ``hold`` never answers; tell of each request."""
    broker = broker_for(url, "heartbeat=4&backoff_cap=1")
    info = session()
    await broker.open(info, TIMEOUT)
    responder = await broker.respond(request_type, 100, 1000, TIMEOUT)
    say("responding", info.id)
    serving = asyncio.create_task(_serve(responder, behaviour))
    await told()
    await responder.stop()
    await broker.aclose()
    await serving
    say("closed")


async def _serve(responder: Responder, behaviour: str) -> None:
    while batch := await responder.receive():
        for request in batch:
            say("request", request.redelivered)
            if behaviour == "echo":
                await responder.answer(request, echo(request))


def echo(request: IncomingRequest) -> Answer:
    """Return a reply with the data of the request."""
    return Answer(AnswerKind.REPLY, request.signal.body, request.signal.content_type)


async def ask(url: str, request_type: str) -> None:
    """Send a request and tell how it ends."""
    broker = await opened(url)
    asking = asyncio.create_task(broker.request(_request(request_type), timedelta(seconds=60).total_seconds()))
    say("asking")
    say("ended", (await asking).kind)
    await broker.aclose()


def _request(request_type: str) -> EncodedSignal:
    return signal(1, request_type)


async def observe(url: str, heartbeat: str, *sessions: str) -> None:
    """Watch sessions, and tell of each end."""
    broker = broker_for(url, f"heartbeat={heartbeat}&backoff_cap=0.5")
    await broker.open(session(), TIMEOUT)

    def ended(down: Down) -> None:
        say("down", down.session, down.reason)

    for name in sessions:
        (await broker.watch(name, TIMEOUT)).add_done_callback(lambda future: ended(future.result()))
    say("observing")
    while await told() == "state":
        say("state", broker.health().counters["reconnects"], broker.health().state)
    await broker.aclose()


async def watch(url: str, pattern: str) -> None:
    """Have a temporary subscription."""
    broker = await opened(url)
    await broker.declare(SubscriptionSpec(name="temporary", patterns=(pattern,), durable=False), TIMEOUT)
    say("watching")
    await told()
    await broker.aclose()


ROLES: dict[str, Callable[..., Coroutine[None, None, None]]] = {
    "watch": watch,
    "live": live,
    "hold": hold,
    "respond": respond,
    "ask": ask,
    "observe": observe,
}

if __name__ == "__main__":
    asyncio.run(ROLES[sys.argv[1]](*sys.argv[2:]))
