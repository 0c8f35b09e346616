"""Our connection to another session, as the one who asks: what waits for an answer there."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections import Counter
from enum import Enum

from ..base import Answer, AnswerKind
from .frames import Kind, Malformed, frame, numbered, read_answer, read_number, write_request
from .lines import Line


class Miss(Enum):
    """Why another responder is to be tried."""

    UNREACHABLE = "unreachable"  # nothing was sent
    OVERLOADED = "overloaded"  # it refused the request
    GONE = "gone"  # it had the request, and may have run it


class Peer:
    """See the module. Made with a connected socket; `connect` before anything else."""

    def __init__(self, end: socket.socket, counters: Counter[str]) -> None:
        self._counters = counters
        self._numbers = itertools.count(1)
        self._requests: dict[int, asyncio.Future[Answer | Miss]] = {}
        self._questions: dict[int, asyncio.Future[bytes | None]] = {}
        self.line = Line(end, self._take, self._closed, counters)
        self.used = 0.0  # when, on the event loop's clock

    @property
    def idle(self) -> bool:
        """Whether nothing waits for an answer."""
        return not self._requests and not self._questions

    async def request(self, packed: tuple[bytes, bytes], deadline: float, *, redelivered: bool) -> Answer | Miss:
        """Send a request and wait for its answer until ``deadline`` of the event loop."""
        loop = asyncio.get_running_loop()
        self.used = loop.time()
        if self.line.paused and not await self.line.drain(deadline) and not self.line.is_closed:
            return _expired("the responder takes nothing: it is stopped, or its event loop is blocked; not sent")
        if self.line.is_closed:
            return Miss.UNREACHABLE
        number = next(self._numbers)
        future: asyncio.Future[Answer | Miss] = loop.create_future()
        self._requests[number] = future
        remaining = max(0, int((deadline - loop.time()) * 1000))
        self.line.write(write_request(number, remaining, time.monotonic_ns() // 1_000_000, redelivered, packed))
        try:
            async with asyncio.timeout_at(deadline):
                return await future
        except TimeoutError:
            if _has_come(future):
                return future.result()
            return _expired("no answer before the deadline")
        finally:
            self._requests.pop(number, None)

    async def ask(self, timeout: float) -> bytes | None:
        """Return what the session says of itself; None if it does not answer in time."""
        loop = asyncio.get_running_loop()
        self.used = loop.time()
        deadline = loop.time() + timeout
        if not await self.line.drain(deadline):
            return None
        number = next(self._numbers)
        future: asyncio.Future[bytes | None] = loop.create_future()
        self._questions[number] = future
        self.line.write(numbered(Kind.ASK, number))
        try:
            async with asyncio.timeout_at(deadline):
                return await future
        except TimeoutError:
            return future.result() if _has_come(future) else None
        finally:
            del self._questions[number]

    async def tell(self, message: bytes, deadline: float) -> bool:
        """Send a message; False if there is no room for it in time. Nothing is sent to a session that has ended."""
        self.used = asyncio.get_running_loop().time()
        if not await self.line.drain(deadline) and not self.line.is_closed:
            return False
        self.line.write(frame(Kind.MESSAGE, message))
        return True

    def give_up(self) -> None:
        """Answer what waits, as we are closed ourselves."""
        for future in self._requests.values():
            if not future.done():
                future.set_result(Answer(AnswerKind.LOST, reason="the bus was closed while the request waited"))

    def _take(self, _: Line, kind: int, content: bytes) -> None:
        match kind:
            case Kind.ANSWER:
                number, answer = read_answer(content)
                self._resolve(number, Miss.OVERLOADED if answer.kind is AnswerKind.OVERLOADED else answer)
            case Kind.GONE:
                self._resolve(read_number(content)[0], Miss.GONE)
            case Kind.REPORT:
                number, report = read_number(content)
                question = self._questions.get(number)
                if question is not None and not question.done():
                    question.set_result(report)
            case _:
                raise Malformed(f"a frame of kind {kind} to one who asks")

    def _resolve(self, number: int, answer: Answer | Miss) -> None:
        future = self._requests.get(number)
        if future is None or future.done():
            self._counters["replies_late"] += 1  # or answered twice
        else:
            future.set_result(answer)

    def _closed(self, _: Line) -> None:
        for request in self._requests.values():
            if not request.done():
                request.set_result(Miss.GONE)
        for question in self._questions.values():
            if not question.done():
                question.set_result(None)


def _has_come(future: asyncio.Future[Answer | Miss] | asyncio.Future[bytes | None]) -> bool:
    """Tell whether an answer is there all the same, after the deadline.

    So it is if our own event loop was away: it then finds both at once, the answer and that the time is over. The
    other end has nothing to do with that. Without an answer, the end of the time has cancelled the future.
    """
    return future.done() and not future.cancelled()


def _expired(reason: str) -> Answer:
    return Answer(AnswerKind.EXPIRED, reason=reason)
