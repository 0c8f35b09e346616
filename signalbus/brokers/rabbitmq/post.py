"""Notes on their way to other sessions: published with confirms, on a channel apart from signals."""

from __future__ import annotations

from ..base import PublishOutcome
from .notes import Note, properties
from .publishing import Envelope, Publisher


class Post:
    """Sends notes. An outcome RETURNED means: nobody listens."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    async def send(
        self,
        exchange: str,
        key: str,
        kind: Note,
        body: bytes,
        timeout: float,
        *,
        number: int | None = None,
        durable: bool = False,
    ) -> PublishOutcome:
        """Send one note, once. Raises `BrokerUnavailable` or `Backpressure` if it was not sent in time."""
        header = properties(kind, self._publisher.next_id(), number=number, durable=durable)
        (outcome,) = await self._publisher.publish([Envelope(exchange, key, header, body)], timeout)
        return outcome
