"""From messages to deliveries: what reaches the subscriber, and what is passed on without it.

Messages on their way through the delay ladder go to their next step, rests of under a second are waited out, and
redeliveries of classic queues, which do not count them, are replaced by copies that do.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence

from ..base import Incoming
from . import delays, wire
from .copies import Copies, NotStored
from .incarnation import Handle, Incarnation, Releases
from .lane import Received

log = logging.getLogger(__name__)


class Intake:
    """The deliveries of one consumer that nobody has received yet."""

    def __init__(self, name: str, copies: Copies, releases: Releases) -> None:
        self._name = name
        self._copies = copies
        self._releases = releases
        self._ready: deque[Incoming] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._chores: set[asyncio.Task[None]] = set()
        self._closed = False

    # For the subscriber

    async def receive(self) -> Sequence[Incoming]:
        """Wait for deliveries; nothing once closed."""
        while not self._ready:
            if self._closed:
                return ()
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        batch = list(self._ready)
        self._ready.clear()
        return batch

    def close(self) -> None:
        """Take nothing more, and give back what nobody has received."""
        self._closed = True
        self._wake()
        for incoming in self._ready:
            if isinstance(incoming.handle, Handle) and incoming.handle.held:
                incoming.handle.incarnation.release(incoming.handle)
        self._ready.clear()

    def clear(self) -> None:
        """Forget what nobody has received: its incarnation is gone."""
        self._ready.clear()

    # For the channel

    def take(self, message: Received, incarnation: Incarnation) -> None:
        """Take a message."""
        declared = incarnation.declared
        read = wire.read(message, counted=declared.counted)
        incoming = read.incoming
        handle = incarnation.hold(incoming, message.tag, read.message_id)
        incarnation.deliveries += 1
        if self._closed:
            incarnation.release(handle)
            return
        if message.redelivered:
            released = self._releases.of(read.message_id)
            if declared.counted:
                incoming.crashes = max(0, incoming.crashes - released)
            elif released:
                self._releases.forget(read.message_id)
            else:
                incoming.crashes += 1
                if declared.durable:
                    # The copy carries the count on; the next death would find this message uncounted again.
                    self._begin(self._until_stored(incoming, handle, self._requeue))
                    return
        if read.wait.steps:
            self.move_on(incoming, handle, read.wait)
        elif read.wait.rest:
            self.wait_here(incoming, handle, read.wait.rest)
        else:
            self._ready.append(incoming)
            if self._waiter is not None:
                self._wake()

    # Delays

    def wait_here(self, incoming: Incoming, handle: Handle, seconds: float) -> None:
        """Hold a delivery for less than a second, then hand it out."""

        def due() -> None:
            handle.timer = None
            if handle.held:
                self._ready.append(incoming)
                self._wake()

        handle.timer = asyncio.get_running_loop().call_later(seconds, due)

    def move_on(self, incoming: Incoming, handle: Handle, plan: delays.Plan) -> asyncio.Task[None]:
        """Send a delivery to the next step of its delay, in the background."""

        async def store(incoming: Incoming, incarnation: Incarnation) -> None:
            key = incarnation.declared.return_key
            await self._copies.delay(incoming, plan, key, lambda: incarnation.alive)

        return self._begin(self._until_stored(incoming, handle, store))

    def move_waiting(self, incarnation: Incarnation) -> Sequence[tuple[Handle, asyncio.Task[None]]]:
        """Put what waits here on the shortest step, so that its attempt outlives us."""
        shortest = delays.plan(delays.SHORTEST)
        moving: list[tuple[Handle, asyncio.Task[None]]] = []
        for incoming, handle in incarnation.held():
            if handle.timer is not None:
                handle.timer.cancel()
                handle.timer = None
                moving.append((handle, self.move_on(incoming, handle, shortest)))
        return moving

    def cancel(self) -> None:
        """Cancel what still goes on in the background."""
        for chore in list(self._chores):
            chore.cancel()

    async def _requeue(self, incoming: Incoming, incarnation: Incarnation) -> None:
        await self._copies.requeue(incoming, incarnation.declared.queue, lambda: incarnation.alive)

    async def _until_stored(
        self, incoming: Incoming, handle: Handle, store: Callable[[Incoming, Incarnation], Awaitable[None]]
    ) -> None:
        """Store a copy elsewhere, however long it takes, and acknowledge the delivery."""
        incarnation = handle.incarnation
        while handle.held and incarnation.alive:
            try:
                await store(incoming, incarnation)
            except NotStored as error:
                log.warning("%s: %s cannot be passed on yet: %s", self._name, incoming.signal.id, error)
                continue
            if handle.held:
                incarnation.ack(handle)

    def _begin(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._chores.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._chores.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("%s: a delivery could not be passed on", self._name, exc_info=error)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
