"""Where sessions take requests, and which types they respond to: read from the database, remembered for a while.

Nothing depends on how fresh it is: who is gone refuses the connection, and who is missing is asked for again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from ...errors import BrokerUnavailable, SignalBusError
from . import census, store

_FRESH_SECONDS = 1.0  # what is older is read again
_PATIENCE_SECONDS = 0.02  # for that; then what is known must do, as the database may be held by another process
_GONE_KEPT = 10_000  # names of sessions that are not there any more


@dataclass(frozen=True, slots=True)
class Post:
    """Where a session takes requests. ``address`` is empty if it takes none."""

    session: str
    token: str
    address: str


@dataclass(frozen=True, slots=True)
class Listing:
    """One state of the topology, named by ``counter``."""

    counter: int = -1
    sessions: dict[str, Post] = field(default_factory=dict[str, Post])
    responders: dict[str, list[Post]] = field(default_factory=dict[str, list[Post]])


def read_listing(connection: store.Connection, known: int) -> Listing | None:
    """Return who is there and responds to what; None if the topology is still that of counter ``known``.

    The dead that nobody has buried yet are among them: they refuse connections.
    """
    counter = store.topology_counter(connection)
    if counter == known:
        return None
    posts = {row[0]: Post(row[2], row[1], row[9]) for row in census.roll(connection)}
    responders: dict[str, list[Post]] = {}
    for request_type, number in census.responders(connection):
        if number in posts:
            responders.setdefault(request_type, []).append(posts[number])
    return Listing(counter, {post.session: post for post in posts.values()}, responders)


class Directory:
    """See the module. ``read`` asks the database, given the counter of what is known."""

    def __init__(self, read: Callable[[int], Awaitable[Listing | None]], counters: Counter[str]) -> None:
        self._read = read
        self._counters = counters
        self._listing = Listing()
        self._as_of = float("-inf")
        self._reading: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None
        self._gone: dict[str, None] = {}
        self._stale = True

    async def responders(self, request_type: str, tried: set[str], deadline: float) -> list[Post]:
        """Return who responds to a type, but for the addresses in ``tried``; asks the database if nobody does."""
        if not self._stale and self._listed(request_type, tried):
            await self._refresh()
            return self._listed(request_type, tried)
        await self._read_again(deadline)
        return self._listed(request_type, tried)

    async def find(self, session: str, deadline: float) -> Post | None:
        """Return where a session is; None if there is none."""
        if (found := self._listing.sessions.get(session)) is not None or session in self._gone:
            return found
        await self._read_again(deadline)
        found = self._listing.sessions.get(session)
        if found is None:
            # Names never come back: who left is not to cost a question each time.
            if len(self._gone) >= _GONE_KEPT:
                self._gone.clear()
            self._gone[session] = None
        return found

    def distrust(self) -> None:
        """Ask the database before the next answer: what is known was wrong."""
        self._stale = True

    async def wait_idle(self) -> None:
        """Wait for the end of what is being read; the database answers in any case, also when it is closed."""
        while tasks := [task for task in (self._reading, self._next) if task is not None and not task.done()]:
            await asyncio.wait(tasks)

    async def _refresh(self) -> None:
        """Read again what is old, for a moment; once at a time."""
        if self._reading is not None and not self._reading.done():
            return
        if asyncio.get_running_loop().time() - self._as_of > _FRESH_SECONDS:
            await asyncio.wait({self._read_next()}, timeout=_PATIENCE_SECONDS)

    def _listed(self, request_type: str, tried: set[str]) -> list[Post]:
        posts = self._listing.responders.get(request_type, ())
        return [post for post in posts if post.address and post.address not in tried]

    async def _read_again(self, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.shield(self._read_next())
        except TimeoutError as error:
            raise BrokerUnavailable("the database did not say in time who is there; nothing was sent") from error

    def _read_next(self) -> asyncio.Task[None]:
        """Return the reading that begins next: one that runs already may have missed what the caller knows of."""
        if self._next is None:
            self._next = asyncio.create_task(self._read_after(self._reading), name="signalbus sqlite directory")
            self._next.add_done_callback(self._note)
        return self._next

    async def _read_after(self, previous: asyncio.Task[None] | None) -> None:
        if previous is not None and not previous.done():
            await asyncio.wait([previous])
        self._reading, self._next = self._next, None
        self._stale = False
        begun = asyncio.get_running_loop().time()
        listing = await self._read(self._listing.counter)
        self._as_of = begun
        if listing is not None:
            self._listing = listing

    def _note(self, task: asyncio.Task[None]) -> None:
        if self._next is task:
            self._next = None
        if task.cancelled() or (error := task.exception()) is None:
            return
        self._stale = True
        self._counters["directory_failures"] += 1
        if not isinstance(error, SignalBusError):
            raise error  # a bug of ours: the event loop reports it
