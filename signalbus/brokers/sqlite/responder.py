"""A responder of the embedded broker: requests that wait for it, and those it has."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ...codec import EncodedSignal
from ..base import Answer, AnswerKind, IncomingRequest
from .desk import Duty
from .frames import Kind, numbered, write_answer
from .lines import Line

_MOVED = Answer(AnswerKind.MOVED, reason="the responder left before its handler began")
_OVERLOADED = Answer(AnswerKind.OVERLOADED, reason="too many requests wait already")


@dataclass(slots=True, eq=False)
class Call:
    """One request, until it is answered; `IncomingRequest.handle` of this broker."""

    line: Line
    number: int
    expires: float  # on the event loop's clock
    redelivered: bool
    signal: EncodedSignal

    def answer(self, answer: Answer) -> None:
        """Write the answer."""
        self.line.write(write_answer(self.number, answer))


class Employer(Protocol):
    """What a responder needs of the broker."""

    @property
    def session_id(self) -> str:
        """Our session."""
        ...

    async def dismiss(self, duty: Duty) -> None:
        """Have no more requests sent to us for this duty."""
        ...

    def leave(self, responder: SqliteResponder) -> None:
        """Hand no more requests to this responder."""
        ...


class SqliteResponder:
    """See `Responder`. Made by `SqliteBroker.respond`."""

    def __init__(self, employer: Employer, request_type: str, concurrency: int, backlog: int) -> None:
        self._employer = employer
        self._concurrency = concurrency
        self._backlog = backlog
        self._waiting: deque[Call] = deque()
        self._held: set[Call] = set()
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._stopped = False
        self._moved = False  # others are sent our requests now
        self._ending: asyncio.Task[None] | None = None
        self.duty = Duty(request_type)

    @property
    def load(self) -> tuple[bool, int]:
        """How little it wants another request."""
        return self._stopped, len(self._waiting) + len(self._held)

    def offer(self, call: Call) -> None:
        """Take a request, or answer that we do not."""
        if self._moved:
            call.answer(_MOVED)
            return
        if self._is_full():
            self._drop_expired()
        if self._is_full():
            call.answer(_OVERLOADED)
            return
        self._waiting.append(call)
        self._changed.set()

    async def receive(self) -> Sequence[IncomingRequest]:
        """See `Responder.receive`."""
        while not self._stopped:
            if received := self._hand_out():
                return received
            self._changed.clear()
            await self._changed.wait()
        return ()

    async def answer(self, request: IncomingRequest, answer: Answer) -> bool:
        """See `Responder.answer`. Waits for a requester that takes nothing, until the request expires; False then.

        Raises `InvalidSignal` if the answer is too large; then another one may be given.
        """
        call = request.handle
        assert isinstance(call, Call), "the request is of another broker"
        content = write_answer(call.number, replace(answer, session=answer.session or self._employer.session_id))
        if call.line.paused and call in self._held:
            await call.line.drain(call.expires)
        if call not in self._held:
            return False
        self._held.discard(call)
        self._changed.set()
        if call.line.is_closed or call.line.paused:
            return False
        call.line.write(content)
        return True

    async def stop(self) -> None:
        """See `Responder.stop`."""
        if self._ending is None:
            self._stopped = True
            self._changed.set()
            self._ending = asyncio.ensure_future(self._end())
        await asyncio.shield(self._ending)

    async def aclose(self) -> None:
        """See `Responder.aclose`."""
        await self.stop()
        self._leave_all()
        self._employer.leave(self)

    def end(self) -> None:
        """Stop at once, as the broker is closed."""
        self._stopped = True
        self._changed.set()
        self._move_all()
        self._leave_all()

    def drop(self, line: Line) -> None:
        """Forget requests that nobody has begun, as their requester is gone."""
        self._waiting = deque(call for call in self._waiting if call.line is not line)

    async def _end(self) -> None:
        # Only when requesters can know that we are no choice any more: else they would come back to us at once.
        await self._employer.dismiss(self.duty)
        self._move_all()

    def _move_all(self) -> None:
        self._moved = True
        while self._waiting:
            self._waiting.popleft().answer(_MOVED)

    def _leave_all(self) -> None:
        while self._held:
            call = self._held.pop()
            call.line.write(numbered(Kind.GONE, call.number))

    def _is_full(self) -> bool:
        return len(self._waiting) + len(self._held) >= self._concurrency + self._backlog

    def _drop_expired(self) -> None:
        now = self._loop.time()
        self._waiting = deque(call for call in self._waiting if call.expires > now)

    def _hand_out(self) -> list[IncomingRequest]:
        received: list[IncomingRequest] = []
        now = self._loop.time()
        while self._waiting and len(self._held) < self._concurrency:
            call = self._waiting.popleft()
            if call.expires <= now:
                continue
            self._held.add(call)
            remaining = call.expires - now
            received.append(
                IncomingRequest(signal=call.signal, remaining=remaining, redelivered=call.redelivered, handle=call)
            )
        return received
