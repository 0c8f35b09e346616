"""Noticing the end of sessions: the writer thread's side of `watches.Watches`.

Whether a session has ended is for its lock and the database to say; see docs/decisions/003. All else here only makes
us ask at once: the kernel's word that a process has ended, and hints of those who bury or leave. Either may be wrong
or get lost, so who watches looks once a second in any case.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass

from ...sessions import Down, DownReason
from . import census, store
from .desk import Desk
from .operations import Bury
from .records import moment
from .sessions import is_alive
from .wake import Wake
from .watches import Ended

_LOOK_SECONDS = 1.0  # between looks while hints may have got lost
_SWEEP_SECONDS = 0.1  # between looks after sessions of which the kernel does not tell us
_SWEPT_PER_SECOND = 2_000  # with many of those the looks become rarer: each costs about ten microseconds
_DESCRIPTORS = 256  # of processes: beyond that we would take too many files from the application


@dataclass(frozen=True, slots=True)
class _Target:
    """A living session whose end is waited for."""

    session: int
    token: str
    here: bool  # its process id means something to us
    pid: int


class Watcher:
    """See the module. ``push`` queues a burial, ``post`` takes what ended to the event loop."""

    def __init__(self, desk: Desk, wake: Wake, push: Callable[[Bury], None], post: Callable[[Ended], None]) -> None:
        self._desk = desk
        self._wake = wake
        self._push = push
        self._post = post
        self._state: tuple[int, frozenset[str], bool] | None = None  # what the last look was about
        self._known: frozenset[str] = frozenset()  # living others at the last look, while all are watched
        self._targets: dict[str, _Target] = {}  # by token
        self._descriptors: dict[int, str] = {}  # of processes -> token
        self._unsure: set[str] = set()  # tokens of which no descriptor tells
        self._next_sweep = 0.0
        self.wanted: Container[str] = ()  # sessions for whose end somebody still waits

    def look(self, connection: store.Connection) -> None:
        """Report what has ended; watch the processes of those that live."""
        desk = self._desk
        unwanted = [session for session in desk.watched if session not in self.wanted]
        if unwanted:
            desk.watched = desk.watched.difference(unwanted)
        if not desk.watches:
            if self._state is not None:
                self.close()
            return
        state = store.topology_counter(connection), desk.watched, desk.watches_all
        if state == self._state:
            return
        # In this order: who leaves in between shows in both, and in none the other way round.
        living = {row[2]: row for row in census.roll(connection)}
        rows = census.departures(connection, desk.departure)
        self._report(living, rows)
        self._state = state[0], desk.watched, desk.watches_all
        self._aim(row for name, row in living.items() if name in desk.watched or name in self._known)

    def note_ended(self, descriptors: Iterable[int]) -> None:
        """Bury the sessions of processes that the kernel says have ended."""
        ended = [self._targets[self._close(descriptor)] for descriptor in descriptors]
        # Whose lock is held by somebody all the same (a child that is just about to start another program) is looked
        # after from now on.
        self._unsure.update(target.token for target in ended)
        if ended:
            self._push(Bury([target.session for target in ended]))

    def sweep(self, now: float) -> None:
        """Look after those of whose end the kernel does not tell us, if it is time."""
        if not self._unsure or now < self._next_sweep:
            return
        self._next_sweep = now + max(_SWEEP_SECONDS, len(self._unsure) / _SWEPT_PER_SECOND)
        targets = [self._targets[token] for token in self._unsure]
        directory = self._desk.files.sessions
        if dead := [target.session for target in targets if not is_alive(directory, target.token)]:
            self._push(Bury(dead))

    def seconds_to_look(self) -> float | None:
        """Return the seconds until `look` or `sweep` should be called though nothing seems to happen; None: never."""
        if not self._desk.watches:
            return None
        return max(0.0, self._next_sweep - time.monotonic()) if self._unsure else _LOOK_SECONDS

    def close(self) -> None:
        """Watch nothing any more. Idempotent."""
        for descriptor in list(self._descriptors):
            self._close(descriptor)
        self._targets, self._unsure = {}, set()
        self._known, self._state = frozenset(), None

    def forget(self) -> None:
        """Close our copies only: for a forked child."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = {}

    def _report(self, living: dict[str, census.RollRow], rows: list[census.DepartureRow]) -> None:
        desk = self._desk
        ended = {row[1]: (row[0], _down(row)) for row in rows if desk.watches_all or row[1] in desk.watched}
        for session in (desk.watched | self._known) - living.keys() - ended.keys():
            # Its departure was removed while we were stopped, or never written, by an older version of this program.
            missing = Down(session=session, reason=DownReason.NOPROC, at=moment(desk.clock.wall()))
            ended[session] = sys.maxsize, missing
        desk.departure = max([desk.departure, *(row[0] for row in rows)])
        desk.watched = desk.watched - ended.keys()
        others = (name for name, row in living.items() if row[0] != desk.session and name not in ended)
        self._known = frozenset(others if desk.watches_all else ())
        if ended:
            self._post(list(ended.values()))

    def _aim(self, rows: Iterable[census.RollRow]) -> None:
        """Have the kernel tell us of the end of these sessions' processes, and of no others'."""
        desk = self._desk
        targets = {
            token: _Target(number, token, host == desk.info.host, pid)
            for number, token, _, _, host, pid, *_ in rows
            if number != desk.session
        }
        for descriptor, token in list(self._descriptors.items()):
            if token not in targets:
                self._close(descriptor)
        fresh = [target for token, target in targets.items() if token not in self._targets]
        self._targets = targets
        self._unsure &= targets.keys()
        for target in fresh:
            self._watch(target)

    def _watch(self, target: _Target) -> None:
        descriptor = self._descriptor_of(target)
        # Only now, with the descriptor open: before, the process may have ended and its number gone to another one.
        if not is_alive(self._desk.files.sessions, target.token):
            self._push(Bury([target.session]))
        if descriptor is None:
            self._unsure.add(target.token)
        else:
            self._descriptors[descriptor] = target.token
            self._wake.watch(descriptor)

    def _descriptor_of(self, target: _Target) -> int | None:
        # Containers on one file have host names of their own, and process ids that mean others here; our own, even.
        if not hasattr(os, "pidfd_open") or not target.here or target.pid == os.getpid():
            return None
        if len(self._descriptors) >= _DESCRIPTORS:
            return None
        try:
            return os.pidfd_open(target.pid)
        except OSError:
            return None  # ended already, in another namespace, or out of files

    def _close(self, descriptor: int) -> str:
        self._wake.unwatch(descriptor)
        os.close(descriptor)
        return self._descriptors.pop(descriptor)


def _down(row: census.DepartureRow) -> Down:
    _, session, name, reason, at, unsettled = row
    try:
        known = DownReason(str(reason))
    except ValueError:
        known = DownReason.CONNECTION_LOST  # written by another version, or damaged
    held = unsettled if isinstance(unsettled, int) else None
    return Down(session=session, name=name, reason=known, at=moment(at), unsettled=held)
