"""Taking what other sessions send to ours: requests for our responders, messages, questions about ourselves."""

from __future__ import annotations

import asyncio
import time

from ..base import Answer, AnswerKind, Host
from .frames import Kind, Malformed, numbered, read_number, read_request
from .lines import Line
from .responder import Call, SqliteResponder

_NOBODY = Answer(AnswerKind.MOVED, reason="nobody responds to this type here any more")


class Reception:
    """See the module. ``host`` is None for a broker without a bus: it says nothing of itself."""

    def __init__(self, host: Host | None) -> None:
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._responders: dict[str, list[SqliteResponder]] = {}

    def add(self, responder: SqliteResponder) -> None:
        """Hand requests of its type to a responder as well."""
        self._responders.setdefault(responder.duty.type, []).append(responder)

    def remove(self, responder: SqliteResponder) -> None:
        """Hand it no more. Idempotent."""
        others = [other for other in self._responders.get(responder.duty.type, ()) if other is not responder]
        self._responders[responder.duty.type] = others
        if not others:
            del self._responders[responder.duty.type]

    def take(self, line: Line, kind: int, content: bytes) -> None:
        """Take a frame. Raises `Malformed`."""
        match kind:
            case Kind.REQUEST:
                self._take_request(line, content)
            case Kind.ASK:
                number, _ = read_number(content)
                line.write(numbered(Kind.REPORT, number, self.report()))
            case Kind.MESSAGE:
                self.take_message(content)
            case _:
                raise Malformed(f"a frame of kind {kind} to one who answers")

    def take_message(self, message: bytes) -> None:
        """Hand a message to the bus."""
        if self._host is not None:
            self._host.take(message)

    def report(self) -> bytes:
        """Return what the bus says of itself."""
        return self._host.report() if self._host is not None else b""

    def closed(self, line: Line) -> None:
        """Forget what waits for a requester that is gone."""
        for responder in self._all():
            responder.drop(line)

    def close(self) -> None:
        """End all responders."""
        for responder in self._all():
            responder.end()
        self._responders = {}

    def _all(self) -> list[SqliteResponder]:
        return [responder for responders in self._responders.values() for responder in responders]

    def _take_request(self, line: Line, content: bytes) -> None:
        request = read_request(content)
        # Both clocks are the machine's. A negative age would mean that they are not, as in a time namespace.
        age = max(0, time.monotonic_ns() // 1_000_000 - request.at)
        expires = self._loop.time() + (request.remaining - age) / 1000
        call = Call(line, request.number, expires, request.redelivered, request.signal)
        responders = self._responders.get(request.signal.type)
        if responders:
            min(responders, key=lambda responder: responder.load).offer(call)
        else:
            call.answer(_NOBODY)
