"""What a contestant can do, and the queue that all of them use alike."""

from __future__ import annotations

import secrets
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import aio_pika
from aio_pika.abc import AbstractExchange

#: The peers' acks are fire-and-forget: to disconnect at once would lose the last ones. Not part of what is measured.
LAST_ACKS_SECONDS = 0.5


class Client(Protocol):
    """A connected client. Its queue exists and is empty when it connects; nothing consumes it yet."""

    async def publish(self) -> object:
        """Publish one message, and return when the broker has confirmed it."""
        ...

    async def consume(self, count: int) -> None:
        """Begin to consume; return when ``count`` messages were handled and acked."""
        ...


class Contestant(Protocol):
    """A library under test."""

    @property
    def name(self) -> str:
        """How the table calls it."""
        ...

    def connected(self) -> AbstractAsyncContextManager[Client]:
        """Connect with a fresh queue; disconnect at the end. The queue stays."""
        ...

    async def remove_queue(self) -> int:
        """Delete the queue, once nobody is connected; return how many messages it held."""
        ...


class Names:
    """Exchange and queue of one turn."""

    def __init__(self) -> None:
        prefix = f"signalbus-bench-{secrets.token_hex(4)}"
        self.exchange = f"{prefix}.signals"
        self.dead = f"{prefix}.dead"
        self.queue = f"{prefix}.load"

    @property
    def queue_arguments(self) -> dict[str, str | int]:
        """Return those that signalbus declares."""
        return {
            "x-queue-type": "quorum",
            "x-delivery-limit": 100,
            "x-overflow": "reject-publish",
            "x-dead-letter-strategy": "at-least-once",
            "x-dead-letter-exchange": self.dead,
        }

    async def declare(self, url: str, pattern: str) -> None:
        """Declare what signalbus would."""
        async with await aio_pika.connect(url) as connection:
            channel = await connection.channel()
            await channel.declare_exchange(self.dead, aio_pika.ExchangeType.FANOUT, durable=True)
            exchange: AbstractExchange = await channel.declare_exchange(
                self.exchange, aio_pika.ExchangeType.TOPIC, durable=True
            )
            queue = await channel.declare_queue(self.queue, durable=True, arguments=dict(self.queue_arguments))
            await queue.bind(exchange, pattern)

    async def remove(self, url: str) -> int:
        """Delete it all; return how many messages the queue held."""
        async with await aio_pika.connect(url) as connection:
            channel = await connection.channel()
            deleted = await channel.queue_delete(self.queue)
            await channel.exchange_delete(self.exchange)
            await channel.exchange_delete(self.dead)
            return deleted.message_count or 0
