"""Asking every session at once, with one message, and learning who is there even of those that cannot answer.

The question goes to each session's inbox, where a live event loop answers, and to each session's presence queue,
where nobody consumes: there it expires at once and comes back to us, from the broker itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ...errors import BrokerError, BrokerUnavailable
from ...sessions import SessionInfo
from ..base import PublishResult
from . import notes
from .inbox import Inbox
from .lane import Received
from .notes import Malformed, Note, Report
from .post import Post
from .roster import Roster
from .topology import Topology

log = logging.getLogger(__name__)

ANSWER_SECONDS = 0.25  # after that an event loop is blocked, or its process stopped
SEND_SECONDS = 2.0
ANSWERS = 100  # being sent at the same time, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Present:
    """A living session, with its answer if it gave one in time."""

    info: SessionInfo
    report: Report | None


@dataclass(slots=True)
class _Roll:
    """The answers to one roll call."""

    present: dict[str, SessionInfo] = field(default_factory=dict[str, SessionInfo])
    reports: dict[str, Report] = field(default_factory=dict[str, Report])
    told: bool = False  # of everybody
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Wait until a condition holds; False if it does not in time."""
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            return False
        return True

    @property
    def all_answered(self) -> bool:
        return self.present.keys() <= self.reports.keys()

    def result(self) -> Mapping[str, Present]:
        """Return who is there. A report alone is enough: its session's presence is only late."""
        found = {report.info.id: Present(info=report.info, report=report) for report in self.reports.values()}
        for info in self.present.values():
            found.setdefault(info.id, Present(info=info, report=None))
        return found


class RollCall:
    """Takes roll calls, and answers those of others. ``report`` is what this session says of itself."""

    def __init__(
        self,
        topology: Topology,
        inbox: Inbox,
        post: Post,
        roster: Roster,
        counters: Counter[str],
        report: Callable[[], Report],
    ) -> None:
        self._topology = topology
        self._inbox = inbox
        self._post = post
        self._roster = roster
        self._counters = counters
        self._report = report
        self._number = 0
        self._rolls: dict[int, _Roll] = {}
        self._running: asyncio.Task[Mapping[str, Present]] | None = None
        self._next: asyncio.Task[Mapping[str, Present]] | None = None
        self._answers: set[asyncio.Task[None]] = set()
        inbox.on(Note.ROLL, self._on_roll)
        inbox.on(Note.TOLD, self._on_told)
        inbox.on(Note.REPORT, self._on_report)

    async def take(self) -> Mapping[str, Present]:
        """Return who lives now. Whoever asks while a roll call runs shares the next one. Raises `BrokerError`."""
        if self._next is None:
            self._next = asyncio.create_task(self._after(self._running), name="signalbus rabbitmq roll call")
            self._next.add_done_callback(_seen)
        # Shielded: others may wait for it too.
        return await asyncio.shield(self._next)

    async def aclose(self) -> None:
        """Cancel what runs."""
        tasks = [task for task in (self._running, self._next, *self._answers) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _after(self, earlier: asyncio.Task[Mapping[str, Present]] | None) -> Mapping[str, Present]:
        if earlier is not None:
            await asyncio.wait([earlier])
        self._running, self._next = self._next, None
        return await self._take()

    async def _take(self) -> Mapping[str, Present]:
        self._number += 1
        number, roll = self._number, _Roll()
        self._rolls[number] = roll
        try:
            inbox = self._inbox.queue
            await self._send(self._topology.roll, inbox, Note.ROLL, number)
            if await self._all_present(roll, number):
                self._roster.complete = inbox == self._inbox.queue
            await roll.wait(lambda: roll.all_answered, ANSWER_SECONDS)
        finally:
            del self._rolls[number]
        for info in roll.present.values():
            self._roster.lives(info)
        return roll.result()

    async def _all_present(self, roll: _Roll, number: int) -> bool:
        """Wait until the broker has told of everybody; False if that is not certain in time."""
        if self._roster.complete and await roll.wait(
            lambda: self._roster.living.keys() <= roll.present.keys(), ANSWER_SECONDS
        ):
            # Nobody can be missing whom we have not heard of.
            return True
        # Whom the broker has not told of by now is either gone, or only late.
        # The question is confirmed, so every presence queue has had it: what they made of it comes before this.
        await self._send("", self._inbox.queue, Note.TOLD, number)
        return await roll.wait(lambda: roll.told, SEND_SECONDS)

    async def _send(self, exchange: str, key: str, kind: Note, number: int) -> None:
        outcome = await self._post.send(exchange, key, kind, b"", SEND_SECONDS, number=number)
        if outcome.result is not PublishResult.CONFIRMED:
            raise BrokerUnavailable(f"the sessions could not be asked: {outcome.reason or 'nobody is there'}")

    # From the inbox

    def _on_roll(self, message: Received) -> None:
        queue = notes.expired_in(message)
        if queue is None:
            self._answer(message)
            return
        roll = self._rolls.get(notes.number_of(message))
        found = self._topology.present(queue)
        if found is None:
            raise Malformed(f"a roll call that expired in {queue[:80]!a}")
        if roll is not None:
            roll.present[found[0]] = notes.expand(*found)
            roll.changed.set()

    def _on_told(self, message: Received) -> None:
        roll = self._rolls.get(notes.number_of(message))
        if roll is not None:
            roll.told = True
            roll.changed.set()

    def _on_report(self, message: Received) -> None:
        roll = self._rolls.get(notes.number_of(message))
        if roll is not None:
            report = notes.read_report(message)
            roll.reports[report.info.id] = report
            roll.changed.set()

    def _answer(self, message: Received) -> None:
        asker = message.routing_key
        if not asker.startswith(self._topology.inbox("")):
            raise Malformed(f"a roll call that asks to answer to {asker[:80]!a}")
        if len(self._answers) >= ANSWERS:
            self._counters["roll_calls_dropped"] += 1
            return
        body = notes.write_report(self._report())
        task = asyncio.create_task(self._reply(asker, body, notes.number_of(message)))
        self._answers.add(task)
        task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._answers.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("a roll call could not be answered", exc_info=error)

    async def _reply(self, asker: str, body: bytes, number: int) -> None:
        try:
            await self._post.send("", asker, Note.REPORT, body, SEND_SECONDS, number=number)
        except BrokerError as error:
            log.debug("a roll call is not answered: %s", error)


def _seen(task: asyncio.Task[Mapping[str, Present]]) -> None:
    """Look at the error even if everybody who waited has gone."""
    if not task.cancelled():
        task.exception()
