"""Frames that take the short way, and those that must not."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel, Returning
from pamqp import commands
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from signalbus.brokers.rabbitmq.shortcut import Item, OnMessage, Shortcut

DELIVER = commands.Basic.Deliver("tag", 7, False, "exchange", "key")


class _Channel:
    """What a shortcut uses of a channel."""

    def __init__(self) -> None:
        self.frames: Any = asyncio.Queue[object](10)
        self.confirmations: OrderedDict[int, asyncio.Future[object]] = OrderedDict()

    def publish(self, *tags: int) -> list[asyncio.Future[object]]:
        """Wait for confirms."""
        for tag in tags:
            self.confirmations[tag] = asyncio.get_running_loop().create_future()
        return list(self.confirmations.values())


def shortcut(on_message: OnMessage | None = None) -> tuple[_Channel, asyncio.Queue[object], Shortcut]:
    channel = _Channel()
    queue = channel.frames
    return channel, queue, Shortcut(cast("Channel", channel), on_message)


def header(size: int) -> ContentHeader:
    return ContentHeader(body_size=size, properties=commands.Basic.Properties(message_id="m"))


@pytest.mark.parametrize("parts", [[], [b"abc"], [b"a", b"b", b"c"]])
async def test_a_delivery_is_handed_over_when_it_is_complete(parts: list[bytes]) -> None:
    got: list[DeliveredMessage] = []
    channel, queue, short = shortcut(got.append)
    assert channel.frames is short
    for _ in range(2):
        await short.put((0, DELIVER))
        await short.put((0, header(sum(map(len, parts)))))
        for part in parts:
            await short.put((0, ContentBody(part)))
    assert [message.body for message in got] == [b"".join(parts)] * 2
    assert got[0].delivery_tag == 7
    assert queue.empty()


async def test_other_frames_and_deliveries_that_nobody_takes_go_the_drivers_way() -> None:
    _, queue, short = shortcut()
    items: list[Item] = [(0, DELIVER), (0, header(1)), (0, ContentBody(b"x")), (0, commands.Basic.CancelOk("tag"))]
    for item in items:
        await short.put(item)
    assert [await short.get() for _ in items] == items
    short.task_done()
    assert queue.empty()


async def test_a_confirm_of_many_confirms_them_in_order() -> None:
    channel, _, short = shortcut()
    confirmations = channel.publish(1, 2, 3)
    await short.put((0, commands.Basic.Ack(2, multiple=True)))
    assert [confirmation.done() for confirmation in confirmations] == [True, True, False]
    await short.put((0, commands.Basic.Ack(3, multiple=False)))
    await short.put((0, commands.Basic.Ack(3, multiple=False)))  # known to nobody
    assert confirmations[2].done()
    assert not channel.confirmations


async def test_a_confirm_waits_behind_what_was_returned() -> None:
    channel, queue, short = shortcut()
    (confirmation,) = channel.publish(1)
    # The driver has not come to it yet: an Ack that overtook it would make a stored message of a returned one.
    await short.put((0, commands.Basic.Return(312, "NO_ROUTE", "", "key")))
    await short.put((0, commands.Basic.Ack(1, multiple=False)))
    assert not confirmation.done()
    assert queue.qsize() == 2


async def test_what_was_returned_or_given_up_is_not_confirmed_again() -> None:
    channel, _, short = shortcut()
    channel.publish(1, 2)
    channel.confirmations[1] = cast("asyncio.Future[object]", Returning())
    channel.confirmations[2].cancel()
    await short.put((0, commands.Basic.Ack(2, multiple=True)))
    assert not channel.confirmations


async def test_an_error_in_our_own_code_is_seen_and_costs_no_connection(caplog: pytest.LogCaptureFixture) -> None:
    def fail(message: DeliveredMessage) -> None:
        raise RuntimeError("as told")

    _, _, short = shortcut(fail)
    with caplog.at_level(logging.CRITICAL):
        for _ in range(2):
            await short.put((0, DELIVER))
            await short.put((0, header(0)))
    assert len(caplog.records) == 2


async def test_content_of_the_wrong_kind_is_an_error_of_the_connection() -> None:
    _, _, short = shortcut(lambda message: None)
    await short.put((0, DELIVER))
    with pytest.raises(ValueError, match="followed by"):
        await short.put((0, cast("Any", SimpleNamespace())))
