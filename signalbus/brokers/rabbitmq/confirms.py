"""Publisher confirms of one channel: which messages are not answered yet, and what their answers are."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from itertools import takewhile
from typing import Protocol, cast

from aiormq.channel import Channel

from ..base import CONFIRMED, RETURNED, PublishOutcome, PublishResult
from .deadlines import Deadlines
from .driver import DriverFailure
from .lane import LaneReader, Received, Track

log = logging.getLogger(__name__)

REFUSED = PublishOutcome(PublishResult.REFUSED, "RabbitMQ refuses it: a queue is full, or has no leader")

Confirmation = asyncio.Future[object]
Answered = Callable[[int, int], None]  # called with the number of messages that are answered, and their size


class Lost:
    """The answer of a publish whose channel is gone."""

    __slots__ = ("failure",)

    def __init__(self, failure: DriverFailure) -> None:
        self.failure = failure


class Confirms(Protocol):
    """Matches answers to messages."""

    def expect(self, message_id: str, size: int) -> Confirmation:
        """Return the future answer of the next message to be written."""
        ...

    def wait(self, confirmation: Confirmation, deadline: float) -> Awaitable[None]:
        """Wait for an answer until the deadline, of the loop's clock."""
        ...

    def lose(self, failure: DriverFailure) -> None:
        """Answer all that is open with `Lost`."""
        ...


class DriverConfirms:
    """Leaves the matching to the driver."""

    def __init__(self, channel: Channel, answered: Answered) -> None:
        self._channel = channel
        self._answered = answered
        self._loop = asyncio.get_running_loop()
        self._open = cast("dict[int, Confirmation]", channel.confirmations)  # pyright: ignore[reportUnknownMemberType]

    def expect(self, message_id: str, size: int) -> Confirmation:
        """Return the future answer of the next message to be written."""
        channel = self._channel
        confirmation: Confirmation = self._loop.create_future()
        channel.delivery_tag += 1
        self._open[channel.delivery_tag] = confirmation
        channel.message_id_delivery_tag[message_id] = channel.delivery_tag

        def answered(confirmation: Confirmation) -> None:
            channel.message_id_delivery_tag.pop(message_id, None)
            confirmation.exception()  # an answer after the deadline interests nobody
            self._answered(1, size)

        confirmation.add_done_callback(answered)
        return confirmation

    async def wait(self, confirmation: Confirmation, deadline: float) -> None:
        """Wait for an answer until the deadline, of the loop's clock."""
        await asyncio.wait([confirmation], timeout=max(deadline - self._loop.time(), 0.0))

    def lose(self, failure: DriverFailure) -> None:
        """Answer all that is open with `Lost`."""
        for confirmation in list(self._open.values()):
            if not confirmation.done():
                confirmation.set_result(Lost(failure))


class LaneConfirms:
    """Matches them in the read callback."""

    def __init__(self, channel: int, lane: LaneReader, answered: Answered, ended: Callable[[], None]) -> None:
        self._answered = answered
        self._loop = asyncio.get_running_loop()
        self._deadlines = Deadlines(self._loop)
        self._tag = 0
        # Ordered, as a confirm may stand for all up to it, and is to find the first of them at once.
        self._open: OrderedDict[int, tuple[Confirmation, str, int]] = OrderedDict()
        self._tags: dict[str, int] = {}  # by the id of the message
        lane.mark(channel, Track(confirm=self._confirm, returned=self._return, ended=ended))

    def expect(self, message_id: str, size: int) -> Confirmation:
        """Return the future answer of the next message to be written."""
        confirmation: Confirmation = self._loop.create_future()
        self._tag += 1
        self._open[self._tag] = confirmation, message_id, size
        self._tags[message_id] = self._tag
        return confirmation

    def wait(self, confirmation: Confirmation, deadline: float) -> Awaitable[None]:
        """Wait for an answer until the deadline, of the loop's clock."""
        return self._deadlines.wait(confirmation, deadline)

    def lose(self, failure: DriverFailure) -> None:
        """Answer all that is open with `Lost`."""
        for confirmation, _, _ in self._open.values():
            _answer(confirmation, Lost(failure))
        self._open.clear()
        self._tags.clear()

    def _confirm(self, tag: int, multiple: bool, stored: bool) -> None:
        tags: Iterable[int] = list(takewhile(tag.__ge__, self._open)) if multiple else (tag,)
        answer = CONFIRMED if stored else REFUSED
        count = total = 0
        for each in tags:
            found = self._open.pop(each, None)
            if found is None:
                log.error("RabbitMQ answers a message that was never sent, or twice: %d", each)
                continue
            confirmation, message_id, size = found
            del self._tags[message_id]
            if not confirmation.done():  # whoever waited may have left
                confirmation.set_result(answer)
            count += 1
            total += size
        if count:
            self._answered(count, total)

    def _return(self, message: Received) -> None:
        """Nobody wants it. The broker confirms it all the same, a moment later."""
        tag = self._tags.get(message.properties.message_id or "")
        if tag is None:
            log.error("RabbitMQ returns a message that was never sent: %.80r", message.properties.message_id)
            return
        _answer(self._open[tag][0], RETURNED)


def _answer(confirmation: Confirmation, answer: object) -> None:
    if not confirmation.done():  # whoever waited may have left
        confirmation.set_result(answer)
