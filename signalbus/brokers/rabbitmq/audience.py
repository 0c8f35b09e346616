"""Who would get a signal of some type now: from the registry, read again when it has changed, and a roll call."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from ...errors import BrokerError, ConfigError
from ...patterns import parse
from .connection import Link
from .inbox import Inbox
from .lane import Received
from .notes import Note
from .post import Post
from .registry import Registry
from .roll_call import Present, RollCall
from .topology import Topology

log = logging.getLogger(__name__)

FRESH_SECONDS = 5.0  # news of a change may be lost
ANNOUNCE_SECONDS = 1.0

TRIES = 3  # roll calls, until a session has said once what it has

Patterns = Mapping[str, Sequence[str]]
NONE: Patterns = {}


class Audience:
    """Knows the patterns of all subscriptions. ``temporary`` returns those of this session."""

    def __init__(
        self,
        topology: Topology,
        link: Link,
        registry: Registry,
        roll_call: RollCall,
        inbox: Inbox,
        post: Post,
        temporary: Callable[[], Patterns],
    ) -> None:
        self._topology = topology
        self._link = link
        self._registry = registry
        self._roll_call = roll_call
        self._post = post
        self._temporary = temporary
        self._durable: dict[str, Sequence[str]] = {}
        self._reported: dict[str, Patterns] = {}  # by session, as it said last
        self._read_at = float("-inf")
        self._changes = 0
        self._reading = asyncio.Lock()
        inbox.on(Note.REGISTRY, self._on_change)

    async def names(self, signal_type: str, deadline: float) -> Sequence[str]:
        """Return the names of the subscriptions that match, sorted. Raises `BrokerError` or `DriverFailure`."""
        durable, temporary = await asyncio.gather(self._known(deadline), self._others())
        names = set[str]()
        for source in (durable, self._temporary(), *temporary):
            names.update(name for name, patterns in source.items() if _match(patterns, signal_type))
        return sorted(names)

    async def announce(self) -> None:
        """Tell others, and ourselves, that the durable subscriptions have changed."""
        self._forget()
        try:
            await self._post.send(self._topology.sessions, "registry", Note.REGISTRY, b"", ANNOUNCE_SECONDS)
        except BrokerError as error:
            log.debug("others learn later that the subscriptions have changed: %s", error)

    async def _others(self) -> Sequence[Patterns]:
        """Return the temporary subscriptions of each session. Those of one that is stopped or blocked still get all."""
        present: Mapping[str, Present] = {}
        for _ in range(TRIES):
            present = await self._roll_call.take()
            reports = {id_: found.report.temporary for id_, found in present.items() if found.report is not None}
            known = {id_: patterns for id_, patterns in self._reported.items() if id_ in present}
            self._reported = {**known, **reports}
            if self._reported.keys() >= present.keys():
                break
        else:
            # Asked in vain: not again each time, only as everybody is.
            self._reported = {**dict.fromkeys(present, NONE), **self._reported}
        return list(self._reported.values())

    async def _known(self, deadline: float) -> Patterns:
        clock = asyncio.get_running_loop().time
        async with self._reading:
            if clock() - self._read_at > FRESH_SECONDS:
                changes, began = self._changes, clock()
                entries = await self._registry.read(await self._link.wait_up(deadline))
                self._durable = {name: entry.patterns for name, entry in entries.items()}
                if changes == self._changes:
                    self._read_at = began
            return self._durable

    def _on_change(self, message: Received) -> None:
        self._forget()

    def _forget(self) -> None:
        self._changes += 1
        self._read_at = float("-inf")


def _match(patterns: Sequence[str], signal_type: str) -> bool:
    try:
        return any(parse(pattern).matches(signal_type) for pattern in patterns)
    except ConfigError:
        return False  # a stranger's: no binding of ours has such a pattern
