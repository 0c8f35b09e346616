"""Requests and responders of this process: puts the parts together."""

from __future__ import annotations

import asyncio
from collections import Counter

from ...codec import EncodedSignal
from ...config import RabbitUrl
from ..base import Answer
from .calls import Calls
from .connection import Link
from .control import Control
from .orphans import Orphans
from .publishing import Publisher
from .responder import RabbitResponder, Service
from .society import Society
from .tasks import Keeper


class Requests:
    """Sends requests over the publishing link, and responds to those that come over the consuming one."""

    def __init__(
        self,
        url: RabbitUrl,
        control: Control,
        society: Society,
        keeper: Keeper,
        publish_link: Link,
        consume_link: Link,
        counters: Counter[str],
    ) -> None:
        topology = control.topology
        self.responders: set[RabbitResponder] = set()
        self._calls = Calls(topology, counters)
        self._asking = Publisher(publish_link, control.repair, self._calls.listen)
        self._calls.attach(self._asking)
        self._answering = Publisher(publish_link, control.repair)
        self._orphans = Orphans(topology, self._calls, control, society.observer, society.inbox)
        self._keeper = keeper
        self._looking: asyncio.Task[None] | None = None
        self._service = Service(
            topology=topology,
            link=consume_link,
            control=control,
            publisher=self._answering,
            post=society.post,
            keeper=keeper,
            counters=counters,
            responders=self.responders,
            session=lambda: society.membership.info.id,
            silent_after=url.silent_after,
            backoff_cap=url.backoff_cap,
        )

    async def request(self, request: EncodedSignal, timeout: float) -> Answer:
        """Send a request and wait for its answer."""
        if self._looking is None:
            self._looking = self._keeper.keep("open requests", self._orphans.run)
        self._orphans.began()
        return await self._calls.request(request, timeout)

    async def respond(self, request_type: str, concurrency: int, backlog: int, timeout: float) -> RabbitResponder:
        """Start to respond to a type."""
        responder = RabbitResponder(request_type, concurrency, backlog, self._service)
        try:
            await responder.wait_served(timeout)
        except BaseException:
            await responder.aclose()
            raise
        return responder

    async def close_responders(self) -> None:
        """Stop them, and leave what is unanswered to others."""
        await asyncio.gather(*(responder.aclose() for responder in list(self.responders)), return_exceptions=True)

    async def aclose(self) -> None:
        """End every request, and close the channels. Bounded."""
        self._calls.aclose()
        await asyncio.gather(self._asking.aclose(), self._answering.aclose(), return_exceptions=True)
