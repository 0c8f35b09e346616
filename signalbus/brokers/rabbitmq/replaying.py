"""Dead letters on their way back: straight to the queue of the subscription that failed, past all routing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from ...codec import PREFIX, EncodedSignal
from ...deadletters.death import to_send
from ..base import PublishOutcome, PublishResult
from . import wire
from .publishing import UNSENT, Envelope, Publisher
from .topology import ROUTERS, Topology

_ID = PREFIX + "id"


class Replaying:
    """Sends them, each once; whoever settles one tells the routers."""

    def __init__(self, publisher: Publisher, topology: Topology) -> None:
        self._publisher = publisher
        self._topology = topology

    def queue(self, subscription: str) -> str:
        """Return the queue of a subscription, which need not exist; whatever a dead letter calls it."""
        return f"{self._topology.prefix}.q.{subscription}"

    async def send(self, letters: Sequence[tuple[str, EncodedSignal]], timeout: float) -> Sequence[PublishOutcome]:
        """Send signals, each to a subscription; RETURNED means that there is no such subscription.

        REFUSED ones can never be sent as they are, or find no room; what there was no time for is UNKNOWN. Raises
        `BrokerUnavailable` or `Backpressure` if nothing was sent.
        """
        prepared = [self._envelope(subscription, signal) for subscription, signal in letters]
        envelopes = [each for each in prepared if isinstance(each, Envelope)]
        outcomes = iter(await self._publisher.publish(envelopes, timeout) if envelopes else ())
        return [_certain(next(outcomes)) if isinstance(each, Envelope) else each for each in prepared]

    def _envelope(self, subscription: str, content: EncodedSignal) -> Envelope | PublishOutcome:
        signal = to_send(content, ROUTERS)
        if _ID not in signal.headers:
            # Its id was that of the message. Those are new for each, and it has to be known again.
            signal = replace(signal, headers={_ID: signal.id, **signal.headers})
        if (problem := wire.problem_of(signal)) is not None:
            return PublishOutcome(PublishResult.REFUSED, problem)
        properties = wire.persistent(signal, self._publisher.next_id(), int(time.time()))
        return Envelope("", self.queue(subscription), properties, signal.body)


def _certain(outcome: PublishOutcome) -> PublishOutcome:
    return PublishOutcome(PublishResult.UNKNOWN, outcome.reason) if outcome is UNSENT else outcome
