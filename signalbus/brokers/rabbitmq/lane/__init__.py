"""The fast lane: the frames of every message, handled beside the driver instead of by it.

The driver spends 150 microseconds on a message: an object, a queue and a task for each frame. The lane takes these
frames out of the byte stream, in the event loop's read callback, and leaves all others to the driver, byte for byte::

    socket ─▶ LaneReader.feed_data      cuts the stream into frames
                ├─ channel is marked, frame is hot ─▶ Track.take ─▶ deliver(Received) · confirm(tag…) · returned(id)
                └─ every other frame ─▶ asyncio.StreamReader ─▶ aiormq: handshake, topology, closing, heartbeats

    publish, ack, nack ─▶ encoding ─▶ FrameWriter, many at a time ─▶ LaneReader.write ─▶ socket

Hot are, on channels that were marked: Basic.Deliver and Basic.Return with their header and bodies, Basic.Ack and
Basic.Nack. What the lane cannot read it does not judge: the driver gets it, and does what it does without a lane.
The driver takes a connection for dead when it sees no frame for long, so it is shown a heartbeat while frames arrive.
"""

from __future__ import annotations

from .decoding import Received, Simple, of_header
from .encoding import Persistent, Properties, publication
from .stream import LaneReader, attach, lane_of, open_lane
from .track import Track

__all__ = [
    "LaneReader",
    "Persistent",
    "Properties",
    "Received",
    "Simple",
    "Track",
    "attach",
    "lane_of",
    "of_header",
    "open_lane",
    "publication",
]
