"""The dead letters of the embedded broker: asked from a connection of their own, changed by the writer thread."""

from __future__ import annotations

import asyncio
import sqlite3
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from ...deadletters import audit, queries, transitions
from ...deadletters.file import LetterFile
from ...deadletters.keeper import Keeper, Order, Question
from ...deadletters.model import DEFAULT_RATE, Letter, LetterQuery, Replay
from ...deadletters.pace import pace_of
from ...deadletters.sender import send_all
from ...deadletters.transitions import Claim
from ...errors import BusClosed, SignalBusError, StorageError
from ...ledger import Batch, Origin
from ...ledger.facts import Row
from ...signals import new_id
from ...supervision import Supervisor
from . import replays
from .deaths import content
from .desk import Desk
from .errands import Errands
from .group import Group
from .operations import Change

T = TypeVar("T")

_CLOSE_SECONDS = 2.0
_CLOSED = "whoever was to send it has stopped"
_GAVE_UP = "sending failed again and again; see the log"


class SqliteLetters(Keeper):
    """See `DeadLetters`. Replays are sent by this process, and end with it or with `aclose`: what waits then is dead.

    ``timeout``: seconds for each question. ``append`` takes facts for the ledger; ``ended`` is called once at the end.
    """

    def __init__(
        self,
        errands: Errands,
        desk: Desk,
        file: LetterFile,
        append: Callable[[Sequence[Batch]], None],
        timeout: float,
        ended: Callable[[SqliteLetters], None],
    ) -> None:
        self._errands = errands
        self._desk = desk
        self._file = file
        self._append = append
        self._timeout = timeout
        self._ended = ended
        self._ours: set[str] = set()  # replays that we send
        self._closed = False
        self._ending: asyncio.Task[None] | None = None
        self._giving_up: set[asyncio.Task[int]] = set()
        self._senders = Supervisor("replays", self._gave_up)

    async def get(self, letter: str) -> Letter | None:
        """See `DeadLetters.get`."""
        return await self._ask(partial(whole, letter=letter))

    async def replay(self, query: LetterQuery, *, by: str, rate: float = DEFAULT_RATE) -> Replay:
        """See `DeadLetters.replay`."""
        pace_of(rate)
        await self.catch_up()
        replay = new_id()
        self._ours.add(replay)
        try:
            await self._change(partial(_claim, query=query, replay=replay, by=by, rate=rate))
        finally:
            # Also if we do not know whether it happened: a sender without anything to send ends at once.
            if not self._closed:
                self._senders.start(replay, partial(self._send_all, replay, rate))
        found = await self.progress(replay)
        if found is None:
            raise StorageError(f"replay {replay} is not in {self._file.path} any more; was the file replaced?")
        return found

    async def aclose(self) -> None:
        """See `DeadLetters.aclose`."""
        self._closed = True
        if self._ending is None:
            self._ending = asyncio.create_task(self._end(), name="close dead letters")
        await asyncio.shield(self._ending)

    # Sending

    async def _send_all(self, replay: str, rate: float) -> None:
        recorder = f"replay {replay} {uuid.uuid4().hex[:8]}"
        told = 0

        async def send(replay: str, limit: int) -> int:
            nonlocal told
            taken, facts = await self._change(partial(replays.send, replay=replay, limit=limit))
            self._tell(recorder, told + 1, facts)
            told += len(facts)
            return taken

        await send_all(replay, rate, send)
        self._ours.discard(replay)

    def _tell(self, recorder: str, first: int, facts: Sequence[Row]) -> None:
        if facts:
            info = self._desk.info
            origin = Origin(recorder=recorder, session=info.id, name=info.name, host=info.host, pid=info.pid)
            self._append([Batch(origin=origin, first=first, rows=facts)])

    def _gave_up(self, _: BaseException) -> None:
        # Supervised and logged; what it has not sent must not wait for somebody who does not come.
        task = asyncio.ensure_future(self._give_back(_GAVE_UP))
        self._giving_up.add(task)
        task.add_done_callback(self._giving_up.discard)

    async def _give_back(self, note: str) -> int:
        try:
            back = partial(replays.give_back, replays=tuple(self._ours), note=note)
            return await self._change(back, min(self._timeout, _CLOSE_SECONDS))
        except SignalBusError:
            return 0  # with the end of our session everybody sees that we do not send any more

    async def _end(self) -> None:
        await self._senders.aclose()
        if self._giving_up:
            await asyncio.wait(self._giving_up, timeout=_CLOSE_SECONDS)
        if self._ours:
            await self._give_back(_CLOSED)
        await asyncio.to_thread(self._file.close)
        self._ended(self)

    # The file

    async def _ask(self, question: Question[T]) -> T:
        await self.catch_up()
        return await asyncio.to_thread(self._file.read, question)

    async def _order(self, order: Order[T]) -> T:
        await self.catch_up()
        return await self._change(lambda group: order(group.connection, group.changes.desk.clock.wall()))

    async def catch_up(self) -> None:
        """Put on record what has happened, as far as there is time."""
        self._check()
        deadline = time.monotonic() + self._timeout
        while await asyncio.to_thread(self._file.read, partial(replays.behind, now=self._desk.clock.wall())):
            await self._errands.ask(Change(self._errands.future(), deadline + self._timeout, replays.catch_up))
            if time.monotonic() > deadline:
                return

    async def _change(self, change: Callable[[Group], T], timeout: float | None = None) -> T:
        deadline = time.monotonic() + (self._timeout if timeout is None else timeout)
        return await self._errands.ask(Change(self._errands.future(), deadline, change))

    def _check(self) -> None:
        if self._closed:
            raise BusClosed("these dead letters are closed; ask the broker for them again")


def whole(connection: sqlite3.Connection, letter: str) -> Letter | None:
    """Return a dead letter with its content; see `DeadLetters.get`."""
    found = queries.get(connection, letter)
    death = None if found is None else content(connection, found[1])
    if found is None or death is None:
        return None
    entries = tuple(audit.of_letter(connection, letter))
    return Letter(summary=found[0], content=death.content, history=death.history, audit=entries)


def _claim(group: Group, query: LetterQuery, replay: str, by: str, rate: float) -> None:
    desk = group.changes.desk
    claim = Claim(id=replay, by=by, at=desk.clock.wall(), rate=rate, sender=desk.session)
    transitions.claim(group.connection, query, claim)
