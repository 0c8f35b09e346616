"""The lease of one incarnation of a session: a token in its hands, which its death sets free.

The queue lets nothing lie (TTL 0): a token that comes back because its holder is gone expires at once and is
dead-lettered as ``down.<session>``. Nobody else publishes to the queue, so a new token always finds its holder ready.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from aiormq.abc import AbstractChannel

from ...errors import BrokerError
from ..base import PublishResult
from . import wire
from .deliveries import consume
from .driver import FrameWriter, call, close_quietly
from .lane import Received
from .notes import Malformed, Note, kind_of, number_of
from .post import Post

STEP_SECONDS = 10.0
ARRIVE_SECONDS = 5.0
#: One token is held. The others are room for tokens of which we do not know whether they were published: one that
#: found no holder would be our death.
TOKENS = 10


class Lease:
    """Holds the newest token. ``lost`` is called when the lease cannot be held any more."""

    def __init__(
        self, channel: AbstractChannel, queue: str, post: Post, counters: Counter[str], lost: Callable[[str], None]
    ) -> None:
        self.queue = queue
        self._channel = channel
        self._post = post
        self._counters = counters
        self._lost = lost
        self._writer = FrameWriter(channel)
        self._consumer = ""
        self._number = 0  # of the newest token published
        self._underway = 0  # tokens published, perhaps, and not here yet
        self._held = 0  # the number of the token that we hold
        self._tag = 0
        self._arrived = asyncio.Event()

    @property
    def held(self) -> bool:
        """Whether we hold a token."""
        return self._held > 0

    async def start(self) -> None:
        """Be ready for tokens. From then on others see that the session lives."""
        await call(self._channel.basic_qos(prefetch_count=TOKENS), STEP_SECONDS)
        self._consumer = await consume(self._channel, self.queue, self._take)

    async def renew(self, body: bytes, timeout: float) -> bool:
        """Take a new token, then let the old one go; False if there is none in time: the old one is kept."""
        if self._underway >= TOKENS - 1:
            self._lost("too many tokens are underway")
            return False
        self._number += 1
        self._underway += 1
        try:
            outcome = await self._post.send(
                "", self.queue, Note.TOKEN, body, timeout, number=self._number, durable=True
            )
        except BrokerError:
            self._underway -= 1
            return False
        if outcome.result is PublishResult.REFUSED:
            self._underway -= 1
            return False
        if outcome.result is PublishResult.RETURNED:
            self._lost("its queue is gone")
            return False
        return await self._wait(self._number)

    async def stop(self, timeout: float) -> None:
        """Look dead from now on to who asks, and keep the token: it tells those who do not ask. Bounded."""
        await close_quietly(self._channel.basic_cancel(self._consumer), timeout)

    async def release(self, timeout: float) -> None:
        """Let the token go for good: it tells nobody. Bounded."""
        if self._tag:
            self._writer.write(wire.ack(self._channel.number, self._tag))
            self._tag = 0
        await self._writer.drain(timeout)

    def kill(self) -> None:
        """Write nothing more: the channel is gone."""
        self._writer.kill()

    async def _wait(self, number: int) -> bool:
        try:
            async with asyncio.timeout(ARRIVE_SECONDS):
                while self._held < number:
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            return False
        return True

    def _take(self, message: Received) -> None:
        tag, spare = message.tag, 0
        try:
            number = number_of(message) if kind_of(message) == Note.TOKEN else 0
        except Malformed:
            number = 0
        if not 0 < number <= self._number:  # a stranger's
            self._counters["notes_refused"] += 1
            spare = tag
        else:
            self._underway -= 1
            if number > self._held:
                spare, self._tag, self._held = self._tag, tag, number
            else:
                spare = tag
        if spare:
            self._writer.write(wire.ack(self._channel.number, spare))
        self._arrived.set()
