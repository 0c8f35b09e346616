"""A short way for the frames that come with each message: deliveries, and what confirms publishes.

The driver passes every frame through a queue to a task, and makes a task of each delivery. Here both are handled as
they are read. Everything else goes the driver's own way, and so does a confirm while something waits before it there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import cast

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel, Returning
from pamqp import commands
from pamqp.base import Frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

log = logging.getLogger(__name__)

OnMessage = Callable[[DeliveredMessage], None]
Item = tuple[int, Frame | ContentHeader | ContentBody]


class Shortcut:
    """Stands where the channel's queue of frames stood. All consumers of the channel share ``on_message``."""

    def __init__(self, channel: Channel, on_message: OnMessage | None = None) -> None:
        self._channel = channel
        self._on_message = on_message
        self._queue = cast("asyncio.Queue[Item]", channel.frames)  # pyright: ignore[reportUnknownMemberType]
        self._confirmations = cast("dict[int, asyncio.Future[object]]", channel.confirmations)  # pyright: ignore[reportUnknownMemberType]
        self._delivery: commands.Basic.Deliver | None = None  # its content is still to come
        self._header: ContentHeader | None = None
        self._body: list[bytes] = []
        self._missing = 0
        channel.frames = self  # type: ignore[assignment]  # it has the methods that the driver uses

    async def put(self, item: Item) -> None:
        """Take a frame from the connection's reader."""
        frame = item[1]
        if self._delivery is not None:
            self._content(frame)
        elif isinstance(frame, commands.Basic.Deliver) and self._on_message is not None:
            self._delivery = frame
        elif isinstance(frame, commands.Basic.Ack) and self._queue.empty():
            self._confirm(frame)
        else:
            await self._queue.put(item)

    async def get(self) -> Item:
        """Hand a frame to the channel's reader."""
        return await self._queue.get()

    def task_done(self) -> None:
        """Pass on what the channel's reader says."""
        self._queue.task_done()

    def _content(self, frame: object) -> None:
        if isinstance(frame, ContentHeader):
            self._header, self._body, self._missing = frame, [], frame.body_size or 0
        elif isinstance(frame, ContentBody):
            self._body.append(frame.value)
            self._missing -= len(frame.value)
        else:
            raise ValueError(f"a delivery is followed by {type(frame).__name__}, not by its content")
        if self._missing <= 0:
            self._deliver()

    def _deliver(self) -> None:
        delivery, header, body = self._delivery, self._header, self._body
        self._delivery, self._header, self._body = None, None, []
        assert delivery is not None
        assert header is not None
        assert self._on_message is not None
        content = body[0] if len(body) == 1 else b"".join(body)
        try:
            self._on_message(DeliveredMessage(delivery, header, content, self._channel))
        except Exception:
            # A bug of ours. It must not pass for a failure of the connection, which the driver would make of it.
            log.critical("a delivery could not be taken", exc_info=True)

    def _confirm(self, frame: commands.Basic.Ack) -> None:
        tag = frame.delivery_tag or 0
        if not frame.multiple:
            self._resolve(tag, frame)
            return
        # Tags are in order, as they were given out.
        while self._confirmations and (first := next(iter(self._confirmations))) <= tag:
            self._resolve(first, frame)

    def _resolve(self, tag: int, frame: commands.Basic.Ack) -> None:
        confirmation = self._confirmations.pop(tag, None)
        if confirmation is not None and not isinstance(confirmation, Returning) and not confirmation.done():
            confirmation.set_result(frame)
