"""Publishes on their way to the writer thread: bounded in number and bytes, in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from ...errors import Backpressure, BrokerError, BusClosed, SignalBusError, StorageError
from ..base import PublishOutcome, PublishResult
from .operations import Publish
from .records import Record

_PENDING_SIGNALS = 10_000  # publishes beyond either wait for room: memory stays bounded
_PENDING_BYTES = 64 * 1024 * 1024
_CHUNK = 500  # signals of one batch that go together; a huge batch must not hold the lock for long

Outcomes = Sequence[PublishOutcome]


class Outbox:
    """See the module. ``submit`` hands an operation to the writer thread."""

    def __init__(self, submit: Callable[[Publish], None], new_future: Callable[[], asyncio.Future[Outcomes]]) -> None:
        self._submit = submit
        self._new_future = new_future
        self._waiting: deque[Publish] = deque()  # found no room yet
        self._signals = 0
        self._bytes = 0

    def __bool__(self) -> bool:
        """Whether anything waits for room."""
        return bool(self._waiting)

    def publish(self, records: Sequence[Record], deadline: float) -> Awaitable[Outcomes]:
        """Store a batch in parts, and return its outcomes. Raises an error only if nothing of it was stored."""
        if 0 < len(records) <= _CHUNK:
            return self._put(Publish(self._new_future(), deadline, records))
        return self._publish_in_parts(records, deadline)

    async def _publish_in_parts(self, records: Sequence[Record], deadline: float) -> Outcomes:
        if not records:
            return ()
        chunks = [records[start : start + _CHUNK] for start in range(0, len(records), _CHUNK)]
        futures = [self._put(Publish(self._new_future(), deadline, chunk)) for chunk in chunks]
        return _joined(chunks, await asyncio.gather(*futures, return_exceptions=True))

    def release(self, operation: Publish) -> None:
        """Count an operation out that has its answer, or was taken back from the writer thread."""
        self._signals -= operation.weight
        self._bytes -= operation.size

    def fill(self) -> None:
        """Submit what there is room for now."""
        while self._waiting and self._has_room():
            operation = self._waiting.popleft()
            if operation.future is None or operation.future.done():
                continue
            try:
                self._admit(operation)
            except StorageError as error:
                _refuse(operation, error)

    def expire(self, now: float) -> None:
        """Refuse what has found no room before its deadline."""
        for operation in [operation for operation in self._waiting if operation.deadline <= now]:
            self._waiting.remove(operation)
            text = f"{self._signals} signals are waiting to be stored already; nothing of this one was"
            _refuse(operation, Backpressure(text))

    def close(self) -> None:
        """Refuse what waits."""
        while self._waiting:
            _refuse(self._waiting.popleft(), BusClosed("the broker was closed"))

    def _put(self, operation: Publish) -> asyncio.Future[Outcomes]:
        assert operation.future is not None
        if self._waiting or not self._has_room():
            self._waiting.append(operation)
        else:
            self._admit(operation)
        return operation.future

    def _has_room(self) -> bool:
        return self._signals < _PENDING_SIGNALS and self._bytes < _PENDING_BYTES

    def _admit(self, operation: Publish) -> None:
        self._submit(operation)
        self._signals += operation.weight
        self._bytes += operation.size


def _joined(chunks: Sequence[Sequence[object]], answers: Sequence[Outcomes | BaseException]) -> list[PublishOutcome]:
    """Join the outcomes of the parts of a batch; an error of some of them means that they were not stored."""
    errors = [answer for answer in answers if isinstance(answer, BaseException)]
    for error in errors:
        if len(errors) == len(answers) or not isinstance(error, BrokerError):
            raise error
    outcomes: list[PublishOutcome] = []
    for chunk, answer in zip(chunks, answers, strict=True):
        if isinstance(answer, BaseException):
            outcomes.extend([PublishOutcome(PublishResult.REFUSED, str(answer))] * len(chunk))
        else:
            outcomes.extend(answer)
    return outcomes


def _refuse(operation: Publish, error: SignalBusError) -> None:
    if operation.future is not None and not operation.future.done():
        operation.future.set_exception(error)
