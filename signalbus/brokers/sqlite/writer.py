"""The writer thread: one per broker, the only user of its connection.

Waits for work, and sees to the life of our session and the death of others.
"""

from __future__ import annotations

import asyncio
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import SignalBusError, StorageError
from ...sessions import SessionInfo
from ...trace.listing import Retention
from . import census, store
from .database import Database
from .desk import Desk
from .failures import typed
from .filing import Filing
from .group import Group
from .intake import AnyOperation, Intake
from .lock import FairLock
from .operations import Bury
from .rounds import Deliveries, Rounds
from .sessions import SessionLock, is_alive, remove_leftovers
from .sockets import bind, remove_socket
from .wake import Wake
from .watcher import Watcher
from .watches import Ended

_POLL_SECONDS = 0.5  # between looks of a consumer whose hints may have got lost
_SWEEP_SECONDS = 1.0  # between looks after the sessions of dead processes
_SWEPT_TOGETHER = 20  # sessions; with more of them each looks less often, so that all together look as often
_SPACE_SECONDS = 1.0  # between looks at a disk that is short of space
_LOOP_SECONDS = 5.0  # between looks whether the event loop is still there


@dataclass(frozen=True, slots=True, kw_only=True)
class Clerk:
    """The event loop's side: what is called there, in order; the last one on the thread, for lack of a loop."""

    report: Callable[[Sequence[AnyOperation], Deliveries], None]  # once for each transaction that answers something
    ended: Callable[[Ended], None]  # watched sessions
    renewed: Callable[[SessionInfo], None]  # we are another session now, as others took us for dead
    unreachable: Callable[[], None]  # somebody removed the socket for requests
    orphaned: Callable[[], None]  # the loop was closed before us: let go of what it would have closed


class Writer(threading.Thread):
    """See the module."""

    def __init__(
        self,
        desk: Desk,
        database: Database,
        loop: asyncio.AbstractEventLoop,
        *,
        network_filesystem: bool,
        retention: Retention,
        clerk: Clerk,
    ) -> None:
        # A daemon: a lock that another process never gives back must not keep this one from exiting.
        super().__init__(name=f"signalbus-writer {desk.files.path.name}", daemon=True)
        self._desk = desk
        self._database = database
        self._loop = loop
        self._clerk = clerk
        self._network_filesystem = network_filesystem
        self._lock = FairLock()
        self._wake = Wake()
        self.intake = Intake(desk.files.path, self._wake.ring)
        self._rounds = Rounds(desk, database, self._lock, self.intake, post=self._post, hint=self._wake.hint)
        self.filing = Filing(desk, database, self._lock, self.intake, retention)
        self.watcher = Watcher(desk, self._wake, self.intake.push, self._tell_ended)
        self.calls: socket.socket | None = None  # bound for requests; the event loop's once we are open
        self._known_as = desk.info
        self._looked_at = -1  # data version
        self._next_poll = 0.0
        self._next_sweep = 0.0
        self.opened: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()

    # On the event loop

    def abandon(self) -> tuple[list[AnyOperation], list[AnyOperation]]:
        """Give up on the thread; return what it has not begun, and so never does, and what may still happen."""
        queued, running = self.intake.abandon()
        return queued, [*running, *self._rounds.deferred]

    def ring(self) -> None:
        """Make the thread look at what is watched."""
        self._wake.ring()

    @property
    def trouble(self) -> str:
        """Why nothing can be stored at present, if so."""
        return self.intake.fatal or (str(self._rounds.broken) if self._rounds.broken else "")

    def forget(self) -> None:
        """Let go of everything inherited, in a forked child, without touching the parent's."""
        self._database.leak()
        self._lock.close()
        self.watcher.forget()
        self._wake.forget()
        if self.calls is not None:
            self.calls.close()
        if self._desk.lock is not None:
            self._desk.lock.forget()

    # The thread

    def run(self) -> None:
        """Open, serve, close."""
        try:
            if self._open():
                self._serve()
                self._rounds.leave()
        except BaseException as error:
            self._die(f"the writer thread of {self._desk.files.path} died: {error!r}")
            raise
        finally:
            self._release_everything()

    def _open(self) -> bool:
        path = self._desk.files.path
        try:
            self._desk.files.locate(network_filesystem=self._network_filesystem)
            self._lock.open(self._desk.files.lock)
            with self._lock:
                if self.intake.closing:
                    return False
                self._database.open(create=True)
                self._enter()
        except SignalBusError as error:
            self._call(_fail, self.opened, error)
        except sqlite3.Error as error:
            self._call(_fail, self.opened, typed(error, f"cannot open {path}"))
        except OSError as error:
            self._call(_fail, self.opened, StorageError(f"cannot open {path}: {error}"))
        else:
            self._call(_succeed, self.opened)
            return True
        return False

    def _enter(self) -> None:
        desk, connection = self._desk, self._database.connection
        desk.lock = SessionLock(desk.files.sessions)
        desk.socket = self._wake.listen(desk.files.sessions, desk.lock.token)
        if (bound := bind(socket.SOCK_STREAM, desk.files.sessions / f"{desk.lock.token}.call")) is not None:
            self.calls, desk.address = bound
        self._database.begin()
        clock = desk.clock
        store.rebase_delayed(connection, clock.boot_id(), clock.boottime(), clock.wall())
        others = census.sessions(connection)
        group = Group(connection, desk)
        group.run(())
        group.registry.enter()
        group.registry.bury([session for session, *_ in others])
        self._database.commit(group.changes.written)
        hints = group.changes.committed()
        remove_leftovers(desk.files.sessions, {desk.lock.token, *(token for _, token, *_ in others)})
        self._wake.hint(hints)

    def _serve(self) -> None:
        hinted = False
        while not self._done():
            try:
                if self._rounds.broken is None or self._rounds.recover():
                    self._look(hinted=hinted)
                    hinted = False
                    if self._has_work():
                        self._rounds.run()
                        self.filing.busy()
                        if self._rounds.broken is None:
                            self.filing.tick()
                        continue
                    if self.filing.tick():
                        continue
            except (sqlite3.Error, StorageError) as error:
                self._rounds.stumble(error)
            hinted = self._sleep()

    def _done(self) -> bool:
        if self._loop.is_closed():
            self.intake.closing = True  # nobody closed us, and nobody listens any more
        return self.intake.closing and not self.intake

    def _sleep(self) -> bool:
        """Wait for something to do; tell whether another process gave a hint."""
        timeout = self._timeout()
        if not self.intake.fall_asleep():
            return False
        ended: list[int] = []
        hinted = self._wake.wait(timeout, ended)
        self.intake.wake_up()
        self.watcher.note_ended(ended)
        return hinted

    def _timeout(self) -> float:
        """Return the seconds until there is something to do without being asked."""
        now = time.monotonic()
        rounds, desk = self._rounds, self._desk
        waits = [_LOOP_SECONDS]
        if rounds.broken is not None or now < rounds.resume_at:
            return max(0.0, min(_LOOP_SECONDS, rounds.resume_at - now))
        if desk.short_of_space:
            waits.append(_SPACE_SECONDS)
        if desk.claimants:
            waits.append(self._next_poll - now)
            waits.extend(until - now for until in desk.patience.values())
            if (due := desk.seconds_to_due()) is not None:
                waits.append(due)
        if (look := self.watcher.seconds_to_look()) is not None:
            waits.append(look)
        waits.append(self._next_sweep - now)
        waits.append(self.filing.seconds_to_due(now))
        return max(0.0, min(waits))

    def _look(self, *, hinted: bool) -> None:
        """See what other processes did: their signals, their deaths; and whether there is room again."""
        now = time.monotonic()
        desk, connection = self._desk, self._database.connection
        if desk.claimants and (hinted or now >= self._next_poll):
            self._next_poll = now + _POLL_SECONDS
            version = store.data_version(connection)
            if version != self._looked_at:
                self._looked_at = version
                for subscription in desk.serving():
                    desk.promising.add(subscription)
                    desk.note_due(connection, subscription)
        if now >= self._next_sweep:
            crowd = max(1.0, len(desk.topology.tokens) / _SWEPT_TOGETHER)
            self._next_sweep = now + _SWEEP_SECONDS * crowd
            self._sweep()
        if desk.info is not self._known_as:
            self._known_as = desk.info
            self._call(self._clerk.renewed, desk.info)
        self.watcher.look(connection)
        self.watcher.sweep(now)
        if desk.short_of_space:
            desk.short_of_space = self._database.short_of_space()

    def _sweep(self) -> None:
        desk = self._desk
        assert desk.lock is not None
        if desk.lock.restore():
            # Others may have taken us for dead: a transaction, even an empty one, notices and registers us again.
            self.intake.push(Bury(()))
        self._wake.restore()
        if desk.address and not Path(desk.address).exists():
            self._call(self._clerk.unreachable)
        tokens = desk.topology.tokens.items()
        dead = [session for session, token in tokens if not is_alive(desk.files.sessions, token)]
        if dead:
            self.intake.push(Bury(dead))

    def _has_work(self) -> bool:
        if self.intake:
            return True
        if time.monotonic() < self._rounds.resume_at:
            return False  # the last transaction failed
        if self._rounds.deferred or self._desk.purging or self._desk.unread:
            return True
        due = self._desk.seconds_to_due()
        return (due is not None and due <= 0.0) or self._claimable()

    def _claimable(self) -> bool:
        """Tell whether a consumer of ours has room for something that is there."""
        desk = self._desk
        if not desk.promising:
            return False
        now = time.monotonic()
        for subscription, claimants in desk.serving().items():
            if subscription not in desk.promising or not any(claimant.credit > 0 for claimant in claimants):
                continue
            if not store.has_ready(self._database.connection, subscription):
                desk.promising.discard(subscription)
                desk.patience.pop(subscription, None)
            elif desk.patience.get(subscription, now) <= now:
                return True
        return False

    # The end

    def _die(self, reason: str) -> None:
        queued, running = self.intake.die(reason)
        queued += self._rounds.deferred
        for operation in queued:
            operation.fail(StorageError(reason), certain=True)
        for operation in running:
            operation.fail(StorageError(reason), certain=False)
        self._post([*queued, *running], [])
        self._call(_fail, self.opened, StorageError(reason))

    def _release_everything(self) -> None:
        self.intake.closing = True
        if self._database.usable:
            with self._lock:
                self._database.close()  # the last one to close makes a checkpoint
        if self._desk.lock is not None:
            self._desk.lock.close()
        self.watcher.close()
        self._wake.close()
        if self.calls is not None:
            self.calls.close()  # nobody took it over
        if self._loop.is_closed():
            self._clerk.orphaned()
        remove_socket(self._desk.address)
        self._lock.close()
        self._call(_succeed, self.ended)

    def _post(self, operations: Sequence[AnyOperation], deliveries: Deliveries) -> None:
        self._call(self._clerk.report, operations, deliveries)

    def _tell_ended(self, downs: Ended) -> None:
        self._call(self._clerk.ended, downs)

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            self.intake.closing = True  # the loop was closed under us: nobody listens any more


def _succeed(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _fail(future: asyncio.Future[None], error: SignalBusError) -> None:
    if not future.done():
        future.set_exception(error)
