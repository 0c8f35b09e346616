"""Supervision: long-running parts are restarted when they fail, and given up when they fail too often.

After Erlang/OTP's ``supervisor`` (https://www.erlang.org/doc/man/supervisor), whose rules hold unless said otherwise:
a child's specification says when it is started again, the supervisor's strategy who is restarted with it, and more
than ``max_restarts`` within ``period``, counted over all children, end the supervisor with an error for its parent.

As a process of OTP does, a supervisor does one thing at a time: exits of children and calls wait in one mailbox.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import timedelta
from enum import StrEnum
from functools import partial
from types import TracebackType
from typing import Self

from .children import Child, ChildError, ChildInfo, ChildSpec, ChildState, Restart, described, ready_or_done
from .errors import ConfigError, Escalated

__all__ = ["ChildError", "ChildInfo", "ChildSpec", "ChildState", "Restart", "Strategy", "Supervisor"]

log = logging.getLogger(__name__)

MAX_RESTARTS = 3
PERIOD = timedelta(seconds=5)


class Strategy(StrEnum):
    """Who is restarted with a child."""

    ONE_FOR_ONE = "one_for_one"  # nobody
    REST_FOR_ONE = "rest_for_one"  # those that were started after it
    ONE_FOR_ALL = "one_for_all"  # everybody


class Supervisor:
    """Starts children in order, starts them again by its strategy, and stops them in reverse order.

    Use as ``async with Supervisor(...)``, where giving up cancels the body and raises `Escalated`, as a task group
    does; or as a child of another supervisor, see `as_child`. With ``escalate`` it neither raises nor stops its
    children: it calls that once, with the last error, and leaves the rest running until `aclose`; for owners with an
    order of stopping of their own. ``clock`` returns seconds that only grow.

    Unlike in OTP, giving up counts as a failure for a transient supervisor too.
    """

    def __init__(
        self,
        name: str,
        escalate: Callable[[BaseException], None] | None = None,
        *,
        children: Sequence[ChildSpec] = (),
        strategy: Strategy = Strategy.ONE_FOR_ONE,
        max_restarts: int = MAX_RESTARTS,
        period: timedelta = PERIOD,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ready = asyncio.Event()  # all initial children are started
        self._name = name
        self._escalate = escalate
        self._specs = _checked(name, children)
        self._strategy = strategy
        self._intensity = _Intensity(max_restarts, period, clock)
        self._children: dict[str, Child] = {}  # in the order of their start
        # Holds one exit or one retry for each child, and one call for each waiting caller.
        self._mailbox: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue()
        self._unstoppable: set[asyncio.Task[None]] = set()
        self._lifetimes: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._owner: asyncio.Task[object] | None = None
        self._owner_cancelled = False
        self._cancelling = 0
        self._active = False
        self._closed = False
        self._given_up = False

    # Running

    async def run(self) -> None:
        """Start the children and supervise them until cancelled; may be run again afterwards, with the same ones.

        Raises `Escalated` when it gives up, and `ChildError` if one of ``children`` does not start. Either way, all
        children have been stopped.
        """
        self._open()
        await self._supervise()

    def as_child(self, *, restart: Restart = Restart.PERMANENT) -> ChildSpec:
        """Return the specification with which another supervisor runs this one. Each start begins afresh."""
        return ChildSpec(
            name=self._name, start=self.run, restart=restart, ready=self.ready, start_timeout=None, stop_timeout=None
        )

    async def __aenter__(self) -> Self:
        task = self._launch()
        try:
            await ready_or_done(self.ready, task, None)
            if task.done():
                await task
        except BaseException:
            await self.aclose()
            raise
        self._owner = asyncio.current_task()
        self._cancelling = self._owner.cancelling() if self._owner is not None else 0
        task.add_done_callback(self._supervisor_ended)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        owner, self._owner = self._owner, None
        await self.aclose()
        failure = _failure_of(self._task)
        if self._owner_cancelled and owner is not None and owner.uncancel() > self._cancelling:
            return  # somebody else cancelled it as well, and waits for that
        if failure is not None:
            raise failure

    async def aclose(self) -> None:
        """Stop the children, the newest first, each within its stop timeout. Idempotent; concurrent calls wait."""
        task, closed, self._closed = self._task, self._closed, True
        if task is None:
            return
        if not closed:
            task.cancel()
        await asyncio.wait([task, *self._lifetimes])

    # Children

    async def start_child(self, spec: ChildSpec) -> None:
        """Add a child as the newest and start it. A child that does not start is not added.

        Raises `ChildError`: the name is taken, it failed to start, or the supervisor does not run.
        """
        await self._call(partial(self._add, spec))

    async def terminate_child(self, name: str) -> None:
        """Stop a child; its specification is kept unless it is temporary. Idempotent. Raises `ChildError`."""
        await self._call(partial(self._terminate, name))

    async def restart_child(self, name: str) -> None:
        """Start a child that is stopped. Raises `ChildError`; if it does not start, it stays stopped."""
        await self._call(partial(self._start_again, name))

    async def delete_child(self, name: str) -> None:
        """Forget the specification of a child that is stopped. Raises `ChildError`."""
        await self._call(partial(self._delete, name))

    def which_children(self) -> tuple[ChildInfo, ...]:
        """Return the children in the order of their start."""
        return tuple(child.info() for child in self._children.values())

    def children(self) -> list[str]:
        """Return the names of the children that are not stopped."""
        return [name for name, child in self._children.items() if child.state is not ChildState.STOPPED]

    def start(self, name: str, child: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Run a transient child that is forgotten once it has ended; opens the supervisor if it is not open yet.

        The returned task ends after the child, restarts included; cancelling it stops the child. Raises `ChildError`
        if the name is taken or the supervisor is closed.
        """
        if self._closed:
            raise ChildError(f"supervisor {self._name!r} is closed; {name!r} cannot be started")
        if not self._active:
            self._launch().add_done_callback(self._supervisor_ended)
        self._require_free(name)
        started = Child(ChildSpec(name=name, start=child, restart=Restart.TRANSIENT), forgotten=True)
        self._children[name] = started
        self._mailbox.put_nowait(partial(self._start_registered, started))
        task = asyncio.create_task(self._lifetime(started), name=f"{self._name}/{name}/lifetime")
        self._lifetimes.add(task)
        # A task that is cancelled before its first step never runs the code that would stop the child.
        task.add_done_callback(lambda task: self._lifetime_ended(task, started))
        return task

    # The mailbox

    def _open(self) -> None:
        if self._active:
            raise ChildError(f"supervisor {self._name!r} runs already")
        self._active = True
        self._given_up = False
        self._intensity.reset()
        self._mailbox = asyncio.Queue()
        self._children = {spec.name: Child(spec) for spec in self._specs}

    def _launch(self) -> asyncio.Task[None]:
        if self._closed:
            raise ChildError(f"supervisor {self._name!r} is closed; make a new one")
        self._open()
        self._task = asyncio.create_task(self._supervise(), name=f"{self._name}/supervisor")
        return self._task

    async def _supervise(self) -> None:
        try:
            await self._start_initial()
            self.ready.set()
            while True:
                step = await self._mailbox.get()
                await step()
        finally:
            self.ready.clear()
            try:
                await self._stop_everything()
            finally:
                self._leave()

    def _leave(self) -> None:
        """Tell those who still wait that nobody will come."""
        self._active = False
        while not self._mailbox.empty():
            step = self._mailbox.get_nowait()
            if isinstance(step, _Call):
                step.refuse(self._name)

    async def _call(self, operation: Callable[[], Awaitable[None]]) -> None:
        if not self._active:
            raise ChildError(f"supervisor {self._name!r} does not run; use it inside 'async with'")
        call = _Call(operation)
        self._mailbox.put_nowait(call)
        await call.answer

    def _exited(self, child: Child, task: asyncio.Task[None]) -> None:
        if not self._active:
            return
        self._mailbox.put_nowait(partial(self._after_exit, child, task))

    def _supervisor_ended(self, task: asyncio.Task[None]) -> None:
        error = _failure_of(task)
        if error is None:
            return
        if self._escalate is not None and not self._given_up:
            self._given_up = True
            self._escalate(error)
        elif self._owner is not None:
            self._owner_cancelled = True
            self._owner.cancel()
        else:
            log.critical("supervisor %s ended; nobody is there to act on it", self._name, exc_info=error)

    # Ends and restarts

    async def _after_exit(self, child: Child, task: asyncio.Task[None]) -> None:
        if child.task is not task:
            return  # we stopped it ourselves
        child.task = None
        child.state = ChildState.STOPPED
        failure = child.failure(task)
        if self._given_up:
            self._report(child, failure, "the supervisor has given up: it is not started again")
            self._settle(child)
        elif _wants_restart(child.spec.restart, failure):
            await self._restart(child, failure)
        else:
            if failure is not None:
                self._report(child, failure, "it is temporary: it is not started again")
            self._settle(child)

    async def _restart(self, child: Child, failure: BaseException | None) -> None:
        if self._intensity.exceeded():
            self._give_up(child, failure)
            return
        group = self._affected(child)
        others = [other.spec.name for other in group if other is not child]
        also = f" with {', '.join(others)}" if others else ""
        self._report(child, failure, f"{self._strategy}: starting it again{also}, restart {self._intensity}")
        for other in reversed(group):
            await self._stop(other)
        await self._start_again_all([other for other in group if other.spec.restart is not Restart.TEMPORARY])

    async def _start_again_all(self, children: Iterable[Child]) -> None:
        for child in children:
            try:
                await child.start(self._name, self._exited)
            except ChildError as error:
                child.state = ChildState.RESTARTING
                # By way of the mailbox: a call that ends the child, or us, must get its turn between two tries.
                self._mailbox.put_nowait(partial(self._try_again, child, error))
                return

    async def _try_again(self, child: Child, error: ChildError) -> None:
        if child.state is ChildState.RESTARTING and not self._given_up:
            await self._restart(child, error)

    def _give_up(self, child: Child, failure: BaseException | None) -> None:
        self._report(child, failure, f"giving up, more than {self._intensity.limit}")
        error = failure or ChildError(f"child {child.spec.name!r} ended, though it is permanent")
        if self._escalate is None:
            raise Escalated(
                f"supervisor {self._name!r} gave up, more than {self._intensity.limit}; "
                f"the last was of {child.spec.name!r}: {described(error)}"
            ) from error
        child.state = ChildState.STOPPED
        self._settle(child)
        self._given_up = True
        self._escalate(error)

    def _affected(self, child: Child) -> list[Child]:
        """Return who is restarted with ``child``, itself included, in the order of start."""
        children = list(self._children.values())
        match self._strategy:
            case Strategy.ONE_FOR_ONE:
                return [child]
            case Strategy.REST_FOR_ONE:
                return children[children.index(child) :]
            case Strategy.ONE_FOR_ALL:
                return children

    def _report(self, child: Child, failure: BaseException | None, action: str) -> None:
        reason = "ended" if failure is None else f"failed ({described(failure)})"
        log.error("%s/%s %s; %s", self._name, child.spec.name, reason, action, exc_info=failure)

    # Starting and stopping

    async def _start_initial(self) -> None:
        for child in list(self._children.values()):
            if not child.forgotten:
                await child.start(self._name, self._exited)

    async def _start_registered(self, child: Child) -> None:
        if self._children.get(child.spec.name) is child:
            await child.start(self._name, self._exited)

    async def _stop(self, child: Child) -> None:
        task = await child.stop()
        if task is not None:
            self._unstoppable.add(task)
            task.add_done_callback(self._unstoppable.discard)
        if child.spec.restart is Restart.TEMPORARY:
            self._settle(child)

    def _settle(self, child: Child) -> None:
        """Note that a child is stopped for good, and forget it if nothing is to be kept of it."""
        if child.forgotten or child.spec.restart is Restart.TEMPORARY:
            self._children.pop(child.spec.name, None)
        child.ended.set()

    async def _stop_everything(self) -> None:
        children = list(reversed(self._children.values()))
        try:
            for child in children:
                await self._stop(child)
                self._settle(child)
        except asyncio.CancelledError:
            # Asked a second time, so there is no time left to do it in turn.
            for child in children:
                if child.task is not None:
                    child.task.cancel()
            raise
        finally:
            for child in children:
                self._settle(child)

    # What calls do

    async def _add(self, spec: ChildSpec) -> None:
        self._require_free(spec.name)
        child = self._children[spec.name] = Child(spec)
        try:
            await child.start(self._name, self._exited)
        except ChildError:
            del self._children[spec.name]
            raise

    async def _terminate(self, name: str) -> None:
        await self._stop_for_good(self._find(name))

    async def _stop_for_good(self, child: Child) -> None:
        if self._children.get(child.spec.name) is child:
            await self._stop(child)
            self._settle(child)

    async def _start_again(self, name: str) -> None:
        await self._stopped(name).start(self._name, self._exited)

    async def _delete(self, name: str) -> None:
        del self._children[self._stopped(name).spec.name]

    def _find(self, name: str) -> Child:
        child = self._children.get(name)
        if child is None:
            known = ", ".join(self._children) or "none"
            raise ChildError(f"supervisor {self._name!r} has no child {name!r}; its children: {known}")
        return child

    def _stopped(self, name: str) -> Child:
        child = self._find(name)
        if child.state is not ChildState.STOPPED:
            raise ChildError(f"child {name!r} is {child.state}; terminate it first")
        return child

    def _require_free(self, name: str) -> None:
        if name in self._children:
            raise ChildError(f"supervisor {self._name!r} has a child {name!r} already ({self._children[name].state})")

    async def _lifetime(self, child: Child) -> None:
        try:
            await child.ended.wait()
        except asyncio.CancelledError:
            self._mailbox.put_nowait(partial(self._stop_for_good, child))
            await child.ended.wait()
            raise

    def _lifetime_ended(self, task: asyncio.Task[None], child: Child) -> None:
        self._lifetimes.discard(task)
        if not child.ended.is_set() and self._active:
            self._mailbox.put_nowait(partial(self._stop_for_good, child))


class _Call:
    """An operation in the mailbox, and its answer."""

    def __init__(self, operation: Callable[[], Awaitable[None]]) -> None:
        self.answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._operation = operation

    async def __call__(self) -> None:
        try:
            await self._operation()
        except ChildError as error:
            self._answer(error)
        except BaseException:
            self._answer(ChildError("the supervisor ended while it carried this out"))
            raise
        else:
            self._answer(None)

    def refuse(self, name: str) -> None:
        self._answer(ChildError(f"supervisor {name!r} ended before it came to this"))

    def _answer(self, error: ChildError | None) -> None:
        if self.answer.done():
            return  # the caller was cancelled
        if error is None:
            self.answer.set_result(None)
        else:
            self.answer.set_exception(error)


class _Intensity:
    """Counts restarts, and tells when they are too many."""

    def __init__(self, max_restarts: int, period: timedelta, clock: Callable[[], float]) -> None:
        if max_restarts < 0 or period <= timedelta(0):
            raise ConfigError(f"max_restarts is {max_restarts} in {period}; at least 0 in more than no time")
        self._max_restarts = max_restarts
        self._period = period.total_seconds()
        self._clock = clock
        self._at: deque[float] = deque()

    def exceeded(self) -> bool:
        """Count a restart."""
        now = self._clock()
        self._at.append(now)
        while self._at[0] < now - self._period:
            self._at.popleft()
        return len(self._at) > self._max_restarts

    def reset(self) -> None:
        self._at.clear()

    @property
    def limit(self) -> str:
        return f"{self._max_restarts} restarts in {self._period:g} s"

    def __str__(self) -> str:
        return f"{len(self._at)} of at most {self._max_restarts} in {self._period:g} s"


def _checked(name: str, specs: Sequence[ChildSpec]) -> tuple[ChildSpec, ...]:
    names = [spec.name for spec in specs]
    if twice := {child for child in names if names.count(child) > 1}:
        raise ConfigError(f"supervisor {name!r} has several children named {', '.join(sorted(twice))}")
    return tuple(specs)


def _wants_restart(restart: Restart, failure: BaseException | None) -> bool:
    return restart is Restart.PERMANENT or (restart is Restart.TRANSIENT and failure is not None)


def _failure_of(task: asyncio.Task[None] | None) -> BaseException | None:
    return None if task is None or not task.done() or task.cancelled() else task.exception()
