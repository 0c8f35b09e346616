"""Between the event loop and the writer thread: operations on their way there, answers back, deadlines."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from ...errors import BusClosed, ConfigError, StorageError
from .consumer import SqliteConsumer
from .forks import guard
from .intake import AnyOperation
from .operations import Operation, Publish, Settle
from .outbox import Outbox
from .rounds import Deliveries
from .writer import Writer

T = TypeVar("T")

_TICK_SECONDS = 0.1  # between looks at deadlines, while anything is unanswered
_CLOSE_SECONDS = 5.0


class Errands:
    """See the module. ``writer`` is set before anything is asked of it."""

    def __init__(self, busy_timeout: float, counters: Counter[str]) -> None:
        self._busy_timeout = busy_timeout
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self.is_ours = True  # not in a forked child
        self._ticker: asyncio.TimerHandle | None = None
        self._unanswered = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.writer: Writer | None = None
        self.outbox = Outbox(self.submit, self.future)
        self.consumers: set[SqliteConsumer] = set()
        self.open = False
        self.closed = False
        guard(self)

    def future(self) -> asyncio.Future[Any]:
        """Return a future of the broker's event loop."""
        return self._loop.create_future()

    async def ask(self, operation: Operation[T]) -> T:
        """Submit an operation and return its result. Raises `BusClosed` unless the broker is open."""
        self.check()
        assert operation.future is not None
        self.submit(operation)
        return await operation.future

    async def finish(self, operation: AnyOperation) -> None:
        """Submit an operation of one that ends, and wait for it a while; it happens in any case."""
        if self.closed or not self.is_ours:
            return
        assert operation.future is not None
        try:
            self.submit(operation)
        except StorageError:
            return  # the writer has died, and said so; what is ours goes when the process lets go of its lock
        await asyncio.wait({operation.future}, timeout=_CLOSE_SECONDS)

    async def settle(self, operation: Settle) -> bool:
        """Carry out a settlement; False once the broker is closed."""
        if self.closed:
            return False
        if not self.is_ours:
            self.check_process()
        assert operation.future is not None
        self.submit(operation)
        settled = await operation.future
        if not settled:
            self._counters["settles_lost"] += 1
        return settled

    def later(self, ending: Coroutine[Any, Any, None]) -> None:
        """See to the end of something that could not be begun."""
        task = asyncio.ensure_future(ending)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def submit(self, operation: AnyOperation) -> None:
        """Hand an operation to the writer thread. Raises `StorageError` if that has died."""
        assert self.writer is not None
        self.writer.intake.submit(operation)
        self._unanswered += 1
        if self._ticker is None:
            self._watch()

    def check(self) -> None:
        """Raise `BusClosed` or `ConfigError` if nothing can be asked here."""
        if self.open and self.is_ours:
            return
        self.check_process()
        if not self.open:
            raise BusClosed("the broker is not open")

    def check_process(self) -> None:
        """Raise `ConfigError` in a forked child."""
        if not self.is_ours:
            raise ConfigError(
                "this broker was opened before the process forked; open one of its own in each process, after the fork"
            )

    def forget(self) -> None:
        """Ask nothing any more, in a forked child: the writer thread is the parent's."""
        self.is_ours = False

    def report(self, operations: Sequence[AnyOperation], deliveries: Deliveries) -> None:
        """Take over what the writer thread has done; called on the event loop."""
        release = self.outbox.release
        for operation in operations:
            operation.resolve()
            if type(operation) is Publish:
                release(operation)
        self._unanswered -= len(operations)
        for claimant, incoming in deliveries:
            claimant.sink(incoming)
        if self.outbox:
            self.outbox.fill()

    def stop(self) -> None:
        """Hand out nothing more, and refuse what found no room yet."""
        self.open, self.closed = False, True
        for consumer in list(self.consumers):
            consumer.end()
        self.outbox.close()

    async def end(self, patience: float) -> None:
        """Let the writer thread finish what it has, for ``patience`` seconds; answer for it what it does not."""
        writer = self.writer
        assert writer is not None
        writer.intake.close()
        deadline = time.monotonic() + patience
        await asyncio.wait({writer.ended}, timeout=patience)
        queued, running = writer.abandon()
        for operation in queued:
            _abandon(operation, started=False)
        for operation in running:
            _abandon(operation, started=True)
        # The thread has said its last word and ends within microseconds.
        while writer.ended.done() and writer.is_alive() and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        if self._ticker is not None:
            self._ticker.cancel()

    # Deadlines

    def _watch(self) -> None:
        if self._ticker is None:
            self._ticker = self._loop.call_later(_TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        self._ticker = None
        assert self.writer is not None
        now = time.monotonic()
        for operation in self.writer.intake.expire(now, self._busy_timeout):
            self._unanswered -= 1
            if isinstance(operation, Publish):
                self.outbox.release(operation)
        self.outbox.expire(now)
        self.outbox.fill()
        if (self._unanswered > 0 or self.outbox) and not self.closed:
            self._watch()


def _abandon(operation: AnyOperation, *, started: bool) -> None:
    """Answer for a writer that did not end in time."""
    future = operation.future
    if future is None or future.done():
        return
    if isinstance(operation, Settle):
        future.set_result(False)
    elif operation.persistent:
        future.set_result(None)
    else:
        operation.expire("the broker was closed while the database did not answer", started=started)
