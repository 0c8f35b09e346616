"""The driver at arm's length: calls with a deadline and one kind of error, and a writer that keeps frames in order.

Knows aiormq, but nothing of signals.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from socket import gaierror
from typing import TypeVar, cast

from aiormq import exceptions as driver_errors
from aiormq.abc import AbstractBase, AbstractChannel, ChannelFrame
from aiormq.channel import Channel
from pamqp import commands

from .lane import lane_of

T = TypeVar("T")

ACCESS_REFUSED = 403
NOT_FOUND = 404
LOCKED = 405
PRECONDITION_FAILED = 406
NOT_ALLOWED = 530
NOT_IMPLEMENTED = 540
INTERNAL_ERROR = 541

#: Refusals that trying again does not change: rights, conflicting arguments, somebody else's exclusive queue.
REFUSALS = (ACCESS_REFUSED, LOCKED, PRECONDITION_FAILED, NOT_ALLOWED)

CLOSE_SECONDS = 2.0
RETRY_FLUSH_SECONDS = 0.001
BURST_BYTES = 32 * 1024  # that are written at once, without waiting for the end of the loop's turn

# aiormq drops the reply code of a closed channel and keeps only a class for it.
_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (driver_errors.ChannelAccessRefused, ACCESS_REFUSED),
    (driver_errors.ChannelNotFoundEntity, NOT_FOUND),
    (driver_errors.ChannelLockedResource, LOCKED),
    (driver_errors.ChannelPreconditionFailed, PRECONDITION_FAILED),
    (driver_errors.ProbableAuthenticationError, ACCESS_REFUSED),
    (driver_errors.AuthenticationError, ACCESS_REFUSED),
    (driver_errors.ConnectionNotAllowed, NOT_ALLOWED),
    (driver_errors.ConnectionNotImplemented, NOT_IMPLEMENTED),
    (driver_errors.ConnectionInternalError, INTERNAL_ERROR),
)


class DriverFailure(Exception):
    """Raised when a call to the driver failed. ``code`` is the broker's reply code, if it gave one."""

    def __init__(self, reason: str, code: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code


async def call(awaitable: Awaitable[T], timeout: float) -> T:
    """Await a call to the driver for at most ``timeout`` seconds. Raises only `DriverFailure`.

    The driver raises `asyncio.CancelledError` into callers when it gives a connection up, though nobody cancelled
    them; only a real cancellation passes.
    """
    task = asyncio.current_task()
    assert task is not None
    cancelled = task.cancelling()
    try:
        return await _translated(awaitable, timeout)
    finally:
        if task.cancelling() > cancelled:
            # Also after a result or an error: `wait_for` of Python 3.11, which the driver uses, prefers those to a
            # cancellation that comes at the same time, and who cancelled us would wait for ever.
            raise asyncio.CancelledError


async def _translated(awaitable: Awaitable[T], timeout: float) -> T:
    try:
        async with asyncio.timeout(timeout):
            return await awaitable
    except TimeoutError as error:
        raise DriverFailure(f"no answer within {timeout:.1f} s") from error
    except asyncio.CancelledError as error:
        raise failure_of(error) from error
    except Exception as error:
        # aiormq rejects calls with whatever closed it, even with a bare Exception.
        raise failure_of(error) from error


def on_closed(resource: AbstractBase, callback: Callable[[DriverFailure], None]) -> None:
    """Call ``callback`` with the reason once a connection or channel is closed."""

    def closed(closing: asyncio.Future[object]) -> None:
        callback(failure_of(None if closing.cancelled() else closing.exception()))

    cast("asyncio.Future[object]", resource.closing).add_done_callback(closed)  # type: ignore[attr-defined]


async def close_quietly(closing: Awaitable[object], timeout: float = CLOSE_SECONDS) -> None:
    """Await a closing call; what goes wrong with it does not matter any more."""
    try:
        await call(closing, timeout)
    except DriverFailure:
        pass  # it is gone either way


def failure_of(error: BaseException | None) -> DriverFailure:
    """Return what an exception of the driver means."""
    if error is None:
        return DriverFailure("closed")
    if isinstance(error, driver_errors.InvalidFrameError) and (close := _unexpected_close(error)) is not None:
        return DriverFailure(close.reply_text or "refused", close.reply_code)
    code = next((code for kind, code in _CODES if isinstance(error, kind)), None)
    if code is None and isinstance(error, driver_errors.ConnectionClosed) and error.args:
        first = error.args[0]
        code = first if isinstance(first, int) and first else None
    return DriverFailure(_reason(error), code)


def _unexpected_close(error: BaseException) -> commands.Connection.Close | None:
    """Return the broker's answer to Connection.Open (no such vhost, no right to it), of which aiormq keeps nothing."""
    traceback = error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame.f_locals.get("frame")
        if isinstance(frame, commands.Connection.Close):
            return frame
        traceback = traceback.tb_next
    return None


def _reason(error: BaseException) -> str:
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    match cause:
        case ssl.SSLCertVerificationError():
            return f"TLS: the certificate is not trusted: {cause.verify_message}"
        case ssl.SSLError():
            return f"TLS: {cause.reason or cause}"
        case gaierror():
            return f"DNS: {cause.strerror or cause}"
        case ConnectionRefusedError():
            return "connection refused: nothing listens there"
        case asyncio.CancelledError():
            return "the connection was given up: no heartbeat, or closed meanwhile"
        case _:
            text = ", ".join(str(argument) for argument in cause.args if argument not in (None, ""))
            return text or type(cause).__name__


class FrameWriter:
    """Writes frames of one channel in the order of the calls, many together: at the latest once a turn of the loop.

    One write for many frames is what makes publishing and acknowledging fast; but in a turn with much to write, the
    broker is not to wait for the end of it. Callers bound what is in flight.
    ``last`` returns frames that are only known at the end of a turn, which `schedule` announces.
    """

    def __init__(self, channel: AbstractChannel, last: Callable[[], bytes] | None = None) -> None:
        assert isinstance(channel, Channel)
        self._lane = lane_of(channel)
        self._queue = cast("asyncio.Queue[ChannelFrame]", channel.write_queue)  # pyright: ignore[reportUnknownMemberType]
        self._last = last
        self._pending: list[bytes] = []
        self._size = 0  # of what is pending
        self._scheduled = False
        self._dead = False
        self._loop = asyncio.get_running_loop()

    def write(self, frames: bytes) -> None:
        """Hand frames over; does not block."""
        if self._dead:
            return
        self._pending.append(frames)
        self._size += len(frames)
        if self._size < BURST_BYTES or self._lane is None or not self._pass_on():
            self.schedule()

    def schedule(self) -> None:
        """Flush at the end of this turn of the loop."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Pass everything on to the connection now, if it takes it."""
        self._scheduled = False
        if self._dead:
            return
        if self._last is not None and (frames := self._last()):
            self._pending.append(frames)
            self._size += len(frames)
        if not self._pending or self._pass_on():
            return
        self._scheduled = True
        if self._lane is not None:
            self._lane.when_writable(self.flush)
        else:
            self._loop.call_later(RETRY_FLUSH_SECONDS, self.flush)

    def _pass_on(self) -> bool:
        if self._queue.full() if self._lane is None else self._lane.full:
            return False  # before what waits is put together, perhaps for nothing
        frames = b"".join(self._pending)
        if self._lane is None:
            self._queue.put_nowait(ChannelFrame(frames, should_close=False))
        else:
            self._lane.write(frames)
        self._pending.clear()
        self._size = 0
        return True

    async def drain(self, timeout: float) -> None:
        """Wait until everything is passed on, or the channel is dead."""
        deadline = self._loop.time() + timeout
        self.flush()
        while self._pending and self._loop.time() < deadline:  # noqa: ASYNC110 - the queue announces no room
            await asyncio.sleep(RETRY_FLUSH_SECONDS)

    def kill(self) -> None:
        """Write nothing more: frames for a closed channel make the broker close the whole connection (504)."""
        self._dead = True
        self._pending.clear()
        self._size = 0
