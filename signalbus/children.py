"""One supervised child: what it is to do, its task, and how that is started and stopped.

Knows nothing of strategies and restart counts; those are `signalbus.supervision`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from .errors import ConfigError, SignalBusError

log = logging.getLogger(__name__)

START_TIMEOUT = timedelta(seconds=30)
STOP_TIMEOUT = timedelta(seconds=5)  # as Erlang/OTP's workers have


class ChildError(SignalBusError):
    """Raised when a child cannot be started, stopped or deleted as asked, or did not start."""


class Restart(StrEnum):
    """When a child is started again."""

    PERMANENT = "permanent"  # whenever it ends
    TRANSIENT = "transient"  # when it fails
    TEMPORARY = "temporary"  # never; forgotten once it has ended


class ChildState(StrEnum):
    """Where a child stands."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    RESTARTING = "restarting"  # it failed while it was started again; the next try is due
    STOPPED = "stopped"  # ended, or terminated; its specification is kept


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """A child of a supervisor. ``start`` is called for every start, and runs until the child ends.

    ``ready``: an event that the child sets once it works; the next child is started only then, and a child that
    fails before has failed to start. Without it a child counts as started at once. ``start_timeout`` is how long to
    wait for it. ``stop_timeout`` is how long a cancelled child may take to end; None waits until it has ended, and
    is for supervisors, whose own stop is bounded.

    Raises `ConfigError` for a name or a timeout that cannot work.
    """

    name: str
    start: Callable[[], Awaitable[None]]
    restart: Restart = Restart.PERMANENT
    ready: asyncio.Event | None = None
    start_timeout: timedelta | None = START_TIMEOUT
    stop_timeout: timedelta | None = STOP_TIMEOUT

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("a child has no name; give it one that is unique in its supervisor")
        for field, value in (("start_timeout", self.start_timeout), ("stop_timeout", self.stop_timeout)):
            if value is not None and value < timedelta(0):
                raise ConfigError(f"{field} of child {self.name!r} is {value}; it must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildInfo:
    """A child as `Supervisor.which_children` shows it. ``restarts``: starts after the first. ``task``: its task's name.

    ``error`` describes its last failure, also when it works again.
    """

    name: str
    restart: Restart
    state: ChildState
    restarts: int
    task: str | None
    error: str | None


class Child:
    """A child and the task of its present incarnation. Driven by one supervisor, one call at a time."""

    __slots__ = ("_cancellation", "_starts", "ended", "error", "forgotten", "restarts", "spec", "state", "task")

    def __init__(self, spec: ChildSpec, *, forgotten: bool = False) -> None:
        self.spec = spec
        self.forgotten = forgotten  # with its end, as if it were temporary
        self.state = ChildState.STARTING
        self.restarts = 0
        self.error: str | None = None
        self.task: asyncio.Task[None] | None = None
        self.ended = asyncio.Event()  # stopped, and not to be started again by a strategy
        self._starts = 0
        self._cancellation: BaseException | None = None

    async def start(self, scope: str, exited: Callable[[Child, asyncio.Task[None]], None]) -> None:
        """Start a new incarnation and wait until it is ready; ``exited`` is called when it has ended.

        Raises `ChildError` from what kept it from becoming ready; then nothing runs.
        """
        spec = self.spec
        self.restarts, self._starts = self._starts, self._starts + 1
        self.state = ChildState.STARTING
        self.ended.clear()
        if spec.ready is not None:
            spec.ready.clear()
        task = self.task = asyncio.create_task(self._run(), name=f"{scope}/{spec.name}")
        task.add_done_callback(lambda task: exited(self, task))
        if spec.ready is not None:
            await ready_or_done(spec.ready, task, spec.start_timeout)
            await self._check_started(task, spec.ready)
        self.state = ChildState.RUNNING

    async def stop(self) -> asyncio.Task[None] | None:
        """Cancel the incarnation and wait for its end; return its task if it did not end in time."""
        task, timeout = self.task, self.spec.stop_timeout
        if task is not None:
            self.state = ChildState.STOPPING
            task.cancel()
            await asyncio.wait([task], timeout=None if timeout is None else timeout.total_seconds())
        self.task = None
        self.state = ChildState.STOPPED
        if task is None or self._stopped_well(task):
            return None
        return task

    def failure(self, task: asyncio.Task[None]) -> BaseException | None:
        """Return why an incarnation ended; None if it ended normally. Remembers it."""
        error = (self._cancellation or asyncio.CancelledError()) if task.cancelled() else task.exception()
        self._cancellation = None
        if error is not None:
            self.error = described(error)
        return error

    def info(self) -> ChildInfo:
        """Return what there is to see."""
        return ChildInfo(
            name=self.spec.name,
            restart=self.spec.restart,
            state=self.state,
            restarts=self.restarts,
            task=None if self.task is None else self.task.get_name(),
            error=self.error,
        )

    async def _run(self) -> None:
        try:
            await self.spec.start()
        except asyncio.CancelledError as error:
            self._cancellation = error  # a task drops the traceback of its cancellation
            raise

    async def _check_started(self, task: asyncio.Task[None], ready: asyncio.Event) -> None:
        name = self.spec.name
        if not task.done() and not ready.is_set():
            await self.stop()
            self.error = f"not ready after {self.spec.start_timeout}"
            raise ChildError(f"child {name!r} was {self.error}; it was stopped")
        if task.done() and (failure := self.failure(task)) is not None:
            self.task = None
            self.state = ChildState.STOPPED
            raise ChildError(f"child {name!r} failed to start: {self.error}") from failure

    def _stopped_well(self, task: asyncio.Task[None]) -> bool:
        """Report what was wrong with a stop; False if the task still runs."""
        name = task.get_name()
        if not task.done():
            log.critical(
                "%s did not end within %s of being cancelled; going on without it", name, self.spec.stop_timeout
            )
            task.add_done_callback(_report_late)
            return False
        if not task.cancelled() and (error := task.exception()) is not None:
            self.error = described(error)
            log.error("%s failed while it was stopped: %s", name, self.error, exc_info=error)
        self._cancellation = None
        return True


async def ready_or_done(ready: asyncio.Event, task: asyncio.Task[None], timeout: timedelta | None) -> None:
    """Wait until an event is set, a task is done or the time is over."""
    waiting = asyncio.create_task(ready.wait())
    try:
        await asyncio.wait(
            [task, waiting],
            timeout=None if timeout is None else timeout.total_seconds(),
            return_when=asyncio.FIRST_COMPLETED,
        )
    finally:
        waiting.cancel()


def described(error: BaseException) -> str:
    """Return an error in one line."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _report_late(task: asyncio.Task[None]) -> None:
    error = None if task.cancelled() else task.exception()
    log.error("%s ended at last, long after it was cancelled", task.get_name(), exc_info=error)
