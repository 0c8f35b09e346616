"""HTTP connections with deadlines: uvicorn has none for requests that do not come, and for readers that do not read.

- The head of a request has `head_seconds` from its first byte, or from the opening of its connection; then 408.
- A reader that takes next to nothing of what waits for it for `reader_seconds` is cut off.
- Beyond `connections`, the one that has been idle for longest makes room: thousands of them lock nobody out.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from .headers import NO_STORE, SECURITY_HEADERS
from .problems import Problem
from .values import written

HEAD_BYTES = 16_384
READER_BYTES = 4_096  # that a reader has to take within `reader_seconds`
_PHRASES = {400: "Bad Request", 408: "Request Timeout"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a client may take. Times in seconds."""

    connections: int = 512
    head_seconds: float = 10.0
    reader_seconds: float = 20.0
    idle_seconds: int = 5  # of a connection between two requests
    drain_seconds: int = 3  # for requests that run when we stop


class Config(uvicorn.Config):
    """Of one server: what its connections share."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        super().__init__(
            app,
            http=DeadlineProtocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,  # nobody's word on who a client is counts
            server_header=False,
            date_header=False,
            workers=1,
            backlog=256,
            timeout_keep_alive=limits.idle_seconds,
            timeout_graceful_shutdown=limits.drain_seconds,
            h11_max_incomplete_event_size=HEAD_BYTES,
        )
        self.limits = limits
        self.connections = Connections(limits.connections)


class Connections:
    """The connections of one server; those that wait for a request, the one that waits longest first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open = 0
        self._idle: OrderedDict[DeadlineProtocol, None] = OrderedDict()

    def opened(self, connection: DeadlineProtocol) -> None:
        """Note a new one, and make room for it; if nobody is idle, there is none."""
        self._open += 1
        self.idle(connection)
        if self._open > self._limit:
            oldest, _ = self._idle.popitem(last=False)
            oldest.transport.abort()

    def idle(self, connection: DeadlineProtocol) -> None:
        """Note that it waits for a request."""
        self._idle[connection] = None

    def busy(self, connection: DeadlineProtocol) -> None:
        """Note that it has one."""
        self._idle.pop(connection, None)

    def closed(self, connection: DeadlineProtocol) -> None:
        """Forget it."""
        self._open -= 1
        self._idle.pop(connection, None)


class DeadlineProtocol(H11Protocol):
    """See the module. Between requests, uvicorn's own timer counts."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        assert isinstance(config, Config)
        self._limits = config.limits
        self._others = config.connections
        self._head: asyncio.TimerHandle | None = None
        self._reader: asyncio.TimerHandle | None = None
        self._waiting = 0  # bytes for the reader, when it was looked at last

    # The life of a connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._await_head()
        self._others.opened(self)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if not self._answering:
            self._await_head()
        super().data_received(data)

    def handle_events(self) -> None:
        """Take up what was received, which may begin a request."""
        super().handle_events()
        if self._answering:
            _cancel(self._head)
            self._head = None
            self._others.busy(self)

    def on_response_complete(self) -> None:
        """Note the end of an answer, which may still have to be read."""
        super().on_response_complete()
        if not self._answering:
            self._others.idle(self)
            if self.conn.trailing_data[0]:  # the next one has begun already
                self._await_head()
        if self.transport.get_write_buffer_size():
            self._await_reader()

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`. The reader has read: what comes next is measured anew."""
        super().resume_writing()
        _cancel(self._reader)
        self._reader = None
        if not self._answering:
            self._await_reader()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        _cancel(self._head)
        _cancel(self._reader)
        self._others.closed(self)

    @property
    def _answering(self) -> bool:
        return not getattr(self.cycle, "response_complete", True)  # there is no cycle before the first request

    # Deadlines

    def _await_head(self) -> None:
        if self._head is None:
            self._head = self.loop.call_later(self._limits.head_seconds, self._head_is_late)

    def _head_is_late(self) -> None:
        if self.conn.trailing_data[0]:
            self._refuse(408, "the head of the request did not come in time", "send it at once")
        self.transport.close()

    def _await_reader(self) -> None:
        if self._reader is None:
            self._waiting = self.transport.get_write_buffer_size()
            self._reader = self.loop.call_later(self._limits.reader_seconds, self._look_at_reader)

    def _look_at_reader(self) -> None:
        self._reader = None
        waiting = self.transport.get_write_buffer_size()
        if waiting and self._waiting - waiting < READER_BYTES:
            self.transport.abort()
        elif waiting:
            self._await_reader()

    # Refusals before there is a request

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._refuse(400, "this is not HTTP/1.1 as it should be", "use a client for HTTP")
        self.transport.close()

    def _refuse(self, status: int, error: str, advice: str) -> None:
        body = written(Problem(status=status, error=error, advice=advice).fields())
        headers = {
            **SECURITY_HEADERS,
            "cache-control": NO_STORE,
            "content-type": "application/json",
            "content-length": str(len(body)),
        }
        lines = [f"{name}: {value}\r\n" for name, value in {**headers, "connection": "close"}.items()]
        self.transport.write(f"HTTP/1.1 {status} {_PHRASES[status]}\r\n{''.join(lines)}\r\n".encode() + body)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
