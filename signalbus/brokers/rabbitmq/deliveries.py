"""Consuming a queue: over the lane where the channel is marked, through the driver where it is not."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from aiormq.abc import AbstractChannel, DeliveredMessage
from pamqp.common import Arguments

from .driver import call
from .lane import Received, lane_of, of_header

STEP_SECONDS = 10.0

Take = Callable[[Received], None]


async def consume(
    channel: AbstractChannel, queue: str, take: Take, *, no_ack: bool = False, arguments: Arguments | None = None
) -> str:
    """Call ``take`` for each message of a queue, in order, and return the tag of the consumer.

    ``take`` is called at once, in the reader of the connection: it must not block. Raises `DriverFailure`.
    """
    tag = f"signalbus-{secrets.token_hex(8)}"
    lane = lane_of(channel)
    track = lane.track(channel.number) if lane is not None else None
    if track is not None:
        track.listen(tag, take)

    async def on_message(message: DeliveredMessage) -> None:
        take(received(message))

    consuming = channel.basic_consume(queue, on_message, no_ack=no_ack, consumer_tag=tag, arguments=arguments)
    await call(consuming, STEP_SECONDS)
    return tag


def received(message: DeliveredMessage) -> Received:
    """Return what the driver delivered as the lane would."""
    return Received(
        message.delivery_tag or 0,
        bool(message.redelivered),
        str(message.routing_key or ""),
        of_header(message.header),
        message.body,
    )
