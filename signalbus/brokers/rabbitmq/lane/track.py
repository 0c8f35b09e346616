"""The hot frames of one channel, from bytes to calls."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from aiormq.exceptions import InvalidFrameError
from pamqp import commands, constants, encode

from .decoding import NO_PROPERTIES, Received, read_header

log = logging.getLogger(__name__)

METHOD, HEADER, BODY = constants.FRAME_METHOD, constants.FRAME_HEADER, constants.FRAME_BODY

_FRAME = struct.Struct(">BHI")
_METHOD = struct.Struct(">I")
_TAG = struct.Struct(">QB")  # delivery tag and flags, of Basic.Ack, Basic.Nack and Basic.Deliver
_BODY_SIZE = struct.Struct(">4xQ")
_LEAST_HEADER = 14  # bytes of class, weight, body size and flags
_END = constants.FRAME_END
_BEFORE, _AROUND = _FRAME.size, _FRAME.size + 1  # bytes of a frame before its payload, and besides it
_FLAG = 1  # ``multiple`` of a confirm, ``redelivered`` of a delivery

_DELIVER, _RETURN = commands.Basic.Deliver.index, commands.Basic.Return.index
_ACK = commands.Basic.Ack.index
_CONFIRMS = (_ACK, commands.Basic.Nack.index)
_ENDS = (commands.Channel.Close.index, commands.Channel.CloseOk.index)

Take = Callable[[Received], None]


@dataclass(slots=True, kw_only=True)
class Track:
    """What to do with the hot frames of a channel; those without a function are left to the driver.

    ``confirm`` gets a delivery tag, whether it stands for all up to it, and whether they are stored. ``returned`` gets
    messages that nobody wants. ``ended`` is called once the broker takes nothing more on the channel, which is
    ``over`` then. All of them are called in the read callback.
    """

    confirm: Callable[[int, bool, bool], None] | None = None
    returned: Take | None = None
    ended: Callable[[], None]
    over: bool = False
    _consumer: bytes = b""  # its tag, as it is in frames
    _delivery: bytes = b""  # how a delivery for it begins
    _deliver: Take | None = None
    _message: Received | None = None  # one that lacks its header or some of its body
    _receiver: Take | None = None  # where it goes
    _missing: int = 0  # bytes of its body
    _parts: list[bytes] = field(default_factory=list[bytes])

    def listen(self, consumer: str, deliver: Take) -> None:
        """Hand over the messages for the consumer with this tag; the driver gets those for others."""
        self._consumer, self._deliver = encode.short_string(consumer), deliver
        self._delivery = _METHOD.pack(_DELIVER) + self._consumer

    def take_whole(self, channel: int, data: bytes, start: int, end: int) -> int:
        """Handle a delivery with the method in ``data[start:end]``, if all of its frames are there, one after another.

        Returns where the last of them ends; 0 for anything else, which `take` does frame by frame. Nearly all
        deliveries come like this, and take half the time.
        """
        if self._deliver is None or self._message is not None or not data.startswith(self._delivery, start):
            return 0
        head = end + 1 + _BEFORE  # past the mark at the end of the method's frame
        after_head = _end_of(HEADER, channel, data, end + 1)
        if not after_head or after_head - head <= _LEAST_HEADER:
            return 0
        size, body = _BODY_SIZE.unpack_from(data, head)[0], after_head + _BEFORE
        after = _end_of(BODY, channel, data, after_head) if size else after_head
        if size and after - body - 1 != size:
            return 0
        message = _delivery(data, start + len(self._delivery))
        message.properties = read_header(data[head : after_head - 1])
        if size:
            message.body = data[body : after - 1]
        _hand_over(message, self._deliver)
        return after

    def take(self, kind: int, data: bytes, start: int, end: int) -> bool:
        """Handle the frame with the payload ``data[start:end]``. False: the driver is to do it."""
        if kind == BODY:
            return self._body(data, start, end)
        if kind == HEADER:
            return self._header(data, start, end)
        if kind != METHOD:
            return False
        method = _METHOD.unpack_from(data, start)[0]
        if method == _DELIVER and self._deliver is not None and data.startswith(self._consumer, start + 4):
            self._begin(_delivery(data, start + 4 + len(self._consumer)), self._deliver)
            return True
        if method in _CONFIRMS and self.confirm is not None:
            tag, flags = _TAG.unpack_from(data, start + 4)
            self.confirm(tag, bool(flags & _FLAG), method == _ACK)
            return True
        if method == _RETURN and self.returned is not None:
            self._begin(Received(0, False, "", NO_PROPERTIES, b""), self.returned)
            return True
        if method in _ENDS:
            self.over = True
            self.ended()
        return False

    def _begin(self, message: Received, receiver: Take) -> None:
        if self._message is not None:
            raise InvalidFrameError(f"a message begins before the end of delivery {self._message.tag}")
        self._message, self._receiver = message, receiver

    def _header(self, data: bytes, start: int, end: int) -> bool:
        if self._message is None or end - start < _LEAST_HEADER:
            return False
        self._missing = _BODY_SIZE.unpack_from(data, start)[0]
        self._message.properties = read_header(data[start:end])
        if not self._missing:
            self._complete(b"")
        return True

    def _body(self, data: bytes, start: int, end: int) -> bool:
        if not self._missing:
            return False
        part = data[start:end]
        self._missing = max(0, self._missing - len(part))
        if self._missing or self._parts:
            self._parts.append(part)
        if not self._missing:
            self._complete(b"".join(self._parts) if self._parts else part)
        return True

    def _complete(self, body: bytes) -> None:
        message, receiver = self._message, self._receiver
        assert message is not None
        assert receiver is not None
        message.body = body
        self._message = self._receiver = None
        self._parts.clear()
        _hand_over(message, receiver)


def _hand_over(message: Received, receiver: Take) -> None:
    try:
        receiver(message)
    except Exception:
        # A bug of ours. It must not pass for a failure of the connection, which asyncio would make of it.
        log.critical("delivery %d could not be taken", message.tag, exc_info=True)


def _end_of(kind: int, channel: int, data: bytes, at: int) -> int:
    """Return where the frame at ``at`` ends; 0 unless all of it is there, and it is of this kind and channel."""
    if at + _AROUND > len(data):
        return 0
    found, its_channel, length = _FRAME.unpack_from(data, at)
    end: int = at + _AROUND + length
    return end if found == kind and its_channel == channel and end <= len(data) and data[end - 1] == _END else 0


def _delivery(data: bytes, at: int) -> Received:
    """Read Basic.Deliver behind its consumer tag."""
    tag, flags = _TAG.unpack_from(data, at)
    at += _TAG.size
    at += 1 + data[at]  # the exchange
    key = data[at + 1 : at + 1 + data[at]].decode("utf-8", "replace")  # it may be any bytes
    return Received(tag, bool(flags & _FLAG), key, NO_PROPERTIES, b"")
