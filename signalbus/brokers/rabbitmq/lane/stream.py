"""The byte stream of one connection, between its socket and the driver."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterable
from ssl import SSLContext
from typing import SupportsIndex, cast

from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.channel import Channel
from aiormq.connection import Connection
from aiormq.exceptions import AMQPConnectionError
from pamqp import commands, constants
from pamqp.heartbeat import Heartbeat
from yarl import URL

from .track import METHOD, Track

BEAT_SECONDS = 1.0  # between heartbeats shown to the driver, whose patience is six seconds at the least
BUFFER = 64 * 1024
# Bytes of a frame; what claims to be larger is none. RabbitMQ's own limit is 128 KiB, if its operator set no other, but
# it does not hold for the headers of a delivery, which grow on their way.
LARGEST_FRAME = 16 * 1024 * 1024

_FRAME = struct.Struct(">BHI")
_AROUND = _FRAME.size + 1  # bytes of a frame besides its payload
_METHOD = struct.Struct(">I")
_KINDS = (METHOD, constants.FRAME_HEADER, constants.FRAME_BODY, constants.FRAME_HEARTBEAT)
_END = constants.FRAME_END
_BLOCKED, _UNBLOCKED = commands.Connection.Blocked.index, commands.Connection.Unblocked.index
_HEARTBEAT = Heartbeat().marshal()
_LANE = "signalbus_lane"


class LaneReader(asyncio.StreamReader):
    """What the driver reads from: the stream without the hot frames of marked channels. Also writes for them.

    What is no stream of frames goes to the driver as it is, from there on: it knows how to fail.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, beat: float = BEAT_SECONDS) -> None:
        super().__init__(BUFFER, loop)
        self.beat = beat
        self.blocked = False  # the broker takes no publishes for now
        self.largest_frame = LARGEST_FRAME
        self._clock = loop.time
        self._shown = loop.time()  # when the driver got its newest frame
        self._tracks: dict[int, Track] = {}
        self._broken = False
        self._rest: list[bytes] = []  # of a frame that is not complete
        self._size = 0  # of this rest
        self._needed = 0  # bytes until it is worth another look
        self._socket: asyncio.Transport | None = None
        self.full = False  # the socket takes no more for now
        self._waiting: dict[Callable[[], None], None] = {}

    def mark(self, channel: int, track: Track) -> None:
        """Take the hot frames of the channel with this number from now on, until it is closed."""
        self._tracks[channel] = track

    def track(self, channel: int) -> Track | None:
        """Return what is done with the hot frames of a channel, if it is marked."""
        return self._tracks.get(channel)

    # Reading

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        """Take a piece of the stream; it may begin and end anywhere."""
        piece = bytes(data)  # which it is already
        if self._rest:
            self._rest.append(piece)
            self._size += len(piece)
            if self._size < self._needed:
                return
            piece = b"".join(self._rest)
            self._rest.clear()
        others = piece if self._broken else self._split(piece)
        if others:
            self._shown = self._clock()
            super().feed_data(others)

    def feed_eof(self) -> None:
        """Take the end of the stream."""
        super().feed_data(b"".join(self._rest))
        self._rest.clear()
        super().feed_eof()

    def _split(self, data: bytes) -> bytes:
        """Handle the hot frames, keep the beginning of one that is not complete, and return all others."""
        others: list[bytes] = []
        begin = at = 0  # of the frames for the driver since the last hot one; of the frame in question
        size = len(data)
        while at + _AROUND <= size:
            kind, channel, length = _FRAME.unpack_from(data, at)
            start, after = at + _FRAME.size, at + _AROUND + length
            if kind not in _KINDS or _AROUND + length > self.largest_frame:
                self._broken = True
                return b"".join((*others, data[begin:]))
            if after > size:
                break
            track = self._tracks.get(channel)
            if track is None:
                if channel == 0 and kind == METHOD:
                    self._watch(data, start)
            elif data[after - 1] == _END:
                if kind == METHOD and (end := track.take_whole(channel, data, start, after - 1)):
                    if begin < at:
                        others.append(data[begin:at])
                    begin = after = end
                elif track.take(kind, data, start, after - 1):
                    others.append(data[begin:at])
                    begin = after
                elif track.over:
                    del self._tracks[channel]  # the number may be another channel's next
            at = after
        if at < size:
            self._keep(data[at:])
        others.append(data[begin:at])
        # Between whole frames, so the driver cannot tell it from the broker's own.
        return b"".join(others) or (_HEARTBEAT if begin and self._clock() - self._shown >= self.beat else b"")

    def _keep(self, rest: bytes) -> None:
        self._rest.append(rest)
        self._size = len(rest)
        self._needed = _AROUND + _FRAME.unpack_from(rest)[2] if self._size >= _AROUND else _AROUND

    def _watch(self, data: bytes, start: int) -> None:
        """See what the connection as a whole is told. The driver hears it later, in a task of its own."""
        method = _METHOD.unpack_from(data, start)[0]
        if method in (_BLOCKED, _UNBLOCKED):
            self.blocked = method == _BLOCKED

    # Writing

    def set_transport(self, transport: asyncio.BaseTransport) -> None:
        """Begin to read from, and to write to, a transport."""
        super().set_transport(transport)
        self._socket = cast("asyncio.Transport", transport)

    def write(self, frames: bytes) -> bool:
        """Write whole frames. False: not now, the socket takes no more; see `when_writable`."""
        if self.full:
            return False
        if self._socket is not None and not self._socket.is_closing():
            self._socket.write(frames)
        return True

    def when_writable(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once the socket takes more. Idempotent."""
        self._waiting[callback] = None

    def pause_writing(self) -> None:
        """Write no more for now: the broker is slow, or has blocked us."""
        self.full = True

    def resume_writing(self) -> None:
        """Write on."""
        self.full = False
        waiting, self._waiting = self._waiting, {}
        for callback in waiting:
            callback()


class _Protocol(asyncio.StreamReaderProtocol):
    """The standard library's, which tells nobody but itself when the socket is full."""

    def __init__(self, reader: LaneReader, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reader, loop=loop)
        self._reader = reader

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader.pause_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reader.resume_writing()


async def open_lane(url: URL, context: SSLContext | None) -> tuple[LaneReader, asyncio.StreamWriter]:
    """Connect to a server. Raises `AMQPConnectionError`, as the driver expects it."""
    loop = asyncio.get_running_loop()
    reader = LaneReader(loop)
    protocol = _Protocol(reader, loop)
    assert url.host is not None
    assert url.port is not None
    try:
        transport, _ = await loop.create_connection(lambda: protocol, url.host, url.port, ssl=context)
    except OSError as error:
        raise AMQPConnectionError(*error.args) from error
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


def attach(connection: AbstractConnection, lane: LaneReader) -> None:
    """Make the lane of a connection known to its channels, once it is connected."""
    assert isinstance(connection, Connection)
    lane.largest_frame = max(LARGEST_FRAME, connection.connection_tune.frame_max + _AROUND)
    setattr(connection, _LANE, lane)


def lane_of(channel: AbstractChannel) -> LaneReader | None:
    """Return the lane under a channel, if there is one."""
    assert isinstance(channel, Channel)
    lane: LaneReader | None = getattr(channel.connection, _LANE, None)
    return lane
