"""This session among the others: puts together what they tell each other."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from aiormq.abc import AbstractConnection

from ...config import RabbitUrl
from ...errors import BrokerUnavailable
from ...sessions import Down, DownReason, SessionInfo
from ..base import Host, PublishResult, SessionStatus
from .audience import Audience
from .connection import Link
from .control import Control
from .driver import DriverFailure
from .inbox import Inbox
from .lane import Received
from .membership import Membership, Surroundings
from .notes import Note, Report
from .observer import Observer
from .post import Post
from .publishing import Publisher
from .registry import Registry
from .roll_call import RollCall
from .roster import Roster
from .subscriptions import Subscriptions
from .tasks import Keeper

T = TypeVar("T")

SEND_SECONDS = 5.0


class Society:
    """Keeps this session alive to others, watches them, and asks them."""

    def __init__(
        self,
        url: RabbitUrl,
        control: Control,
        registry: Registry,
        subscriptions: Subscriptions,
        publisher: Publisher,
        link: Link,
        counters: Counter[str],
        changed: Callable[[], None],
    ) -> None:
        topology = control.topology
        self.post = Post(publisher)
        self.inbox = Inbox(counters)
        roster = Roster()
        self._topology = topology
        self._control = control
        self._subscriptions = subscriptions
        self._roster = roster
        self._roll_call = RollCall(topology, self.inbox, self.post, roster, counters, self._report)
        self.observer = Observer(topology, link, control, self.inbox, roster, self._roll_call, counters, self._is_ours)
        self.membership = Membership(
            Surroundings(
                topology=topology,
                link=link,
                post=self.post,
                inbox=self.inbox,
                counters=counters,
                bind=self.observer.bind,
                unsettled=lambda: subscriptions.unsettled,
                changed=changed,
                renewal=url.lease_renewal,
                backoff_cap=url.backoff_cap,
            )
        )
        self._audience = Audience(
            topology, control.link, registry, self._roll_call, self.inbox, self.post, lambda: subscriptions.temporary
        )
        subscriptions.announce = self._audience.announce
        self.inbox.on(Note.MESSAGE, self._on_message)

    def begin(self, info: SessionInfo, host: Host | None, keeper: Keeper) -> None:
        """Be this session, from the first connection on."""
        self.membership.begin(info, host)
        keeper.keep("session", self.membership.run)
        keeper.keep("observer", self.observer.run)

    async def prepare(self, connection: AbstractConnection) -> None:
        """Enter on a new consuming connection, before anybody consumes on it."""
        await self.membership.prepare(connection)

    async def aclose(self, reason: DownReason) -> None:
        """Say goodbye, and ask nothing more. Bounded."""
        await self.membership.leave(reason)
        self.observer.aclose()
        await self._roll_call.aclose()

    # Asked by the broker

    async def audience(self, signal_type: str, timeout: float) -> Sequence[str]:
        """Return the names of the subscriptions that match a type now."""

        async def ask(deadline: float) -> Sequence[str]:
            return await self._audience.names(signal_type, deadline)

        return await self._asking(ask, timeout, "the subscriptions did not answer")

    async def sessions(self, timeout: float) -> Sequence[SessionStatus]:
        """Return the living sessions, ours included, oldest first."""

        async def ask(_: float) -> Sequence[SessionStatus]:
            found = dict(await self._roll_call.take())
            if self._roster.living.keys() - found.keys():
                self.observer.doubt()
            own = self._report()
            others = [
                SessionStatus(info=present.info, report=present.report.text if present.report is not None else None)
                for present in found.values()
                if not self._is_ours(present.info.id) and not self._roster.has_ended(present.info.id)
            ]
            ours = SessionStatus(info=own.info, report=own.text)
            return sorted([ours, *others], key=lambda status: (status.info.started, status.info.id))

        return await self._asking(ask, timeout, "the sessions did not answer")

    async def send(self, session: str, message: bytes) -> None:
        """Send a message to a session; RETURNED means that there is no such session."""
        outcome = await self.post.send("", self._topology.inbox(session), Note.MESSAGE, message, SEND_SECONDS)
        if outcome.result not in (PublishResult.CONFIRMED, PublishResult.RETURNED):
            raise BrokerUnavailable(f"a message to session {session} was not sent: {outcome.reason}")

    async def watch(self, session: str, timeout: float) -> asyncio.Future[Down]:
        """Return a future for the end of a session."""
        return await self.observer.watch(session, asyncio.get_running_loop().time() + timeout)

    async def watch_all(self, ended: Callable[[Down], None], timeout: float) -> None:
        """Call ``ended`` for the end of every other session."""
        await self.observer.watch_all(ended, asyncio.get_running_loop().time() + timeout)

    # Steps

    async def _asking(
        self, ask: Callable[[float], Awaitable[Sequence[T]]], timeout: float, otherwise: str
    ) -> Sequence[T]:
        deadline = asyncio.get_running_loop().time() + timeout
        try:
            async with asyncio.timeout_at(deadline):
                await self.observer.observe(deadline)
                return await ask(deadline)
        except DriverFailure as failure:
            raise self._control.error(failure) from failure
        except TimeoutError as error:
            raise BrokerUnavailable(self._control.link.trouble(f"{otherwise} within {timeout:.1f} s")) from error

    def _report(self) -> Report:
        host, info = self.membership.host, self.membership.info
        text = host.report() if host is not None else b""
        return Report(info=info, temporary=self._subscriptions.temporary, text=text)

    def _is_ours(self, session: str) -> bool:
        return session.partition(":")[0] == self.membership.info.id.partition(":")[0]

    def _on_message(self, message: Received) -> None:
        if self.membership.host is not None:
            self.membership.host.take(message.body)
