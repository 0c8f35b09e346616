"""Publishing: repeats until the outcome is certain or the deadline passes, always with the same id.

Knows outcomes and deadlines, but no broker.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

from .brokers.base import CONFIRMED, Broker, PublishOutcome, PublishResult
from .codec import EncodedSignal, told
from .errors import (
    Backpressure,
    BatchError,
    BrokerError,
    InvalidSignal,
    PublishUnconfirmed,
    SignalBusError,
    Unroutable,
)
from .ledger import Payload, Recorder, silent
from .receipts import Receipt
from .signals import utc_now
from .telemetry import Telemetry

Unrouted = Literal["raise", "ignore"]

BATCH = 500  # signals sent before their outcomes are looked at; enough to fill a commit or a network window
HEADERS_LIMIT = 65_536  # more than the attributes of a signal can have
FIRST_PAUSE = 0.05  # seconds before the first repeat; doubles
LONGEST_PAUSE = 1.0


@dataclass(slots=True)
class PublisherStats:
    """Counters since the bus was created."""

    published: int = 0
    unroutable: int = 0
    repeated: int = 0
    failed: int = 0


@dataclass(slots=True)
class _Pending:
    """One signal under way. ``sent``: some try may have stored it."""

    encoded: EncodedSignal
    payload: Payload | None = None
    began: float = 0.0
    tries: int = 0
    sent: bool = False
    reason: str = ""
    result: Receipt | SignalBusError | None = None


class Publisher:
    """Publishes encoded signals through a broker."""

    def __init__(
        self,
        broker: Broker,
        max_signal_bytes: int,
        telemetry: Telemetry | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self._broker = broker
        self._telemetry = telemetry or Telemetry()
        self._recorder = silent() if recorder is None else recorder  # an empty one is false
        self._max_signal_bytes = max_signal_bytes
        self.stats = PublisherStats()

    def publish(
        self, encoded: EncodedSignal, timeout: float, unroutable: Unrouted, payload: Payload | None = None
    ) -> Coroutine[object, object, Receipt]:
        """Publish one signal; ``timeout`` in seconds. Raises as `Bus.publish` says."""
        self.check_size(encoded)
        publish = self._publish_observed if self._telemetry.active else self._publish
        return publish(encoded, timeout, unroutable, payload)

    async def _publish_observed(
        self, encoded: EncodedSignal, timeout: float, unroutable: Unrouted, payload: Payload | None
    ) -> Receipt:
        with self._telemetry.sending(encoded) as operation:
            return await self._publish(operation.carried_by(encoded), timeout, unroutable, payload)

    async def _publish(
        self, encoded: EncodedSignal, timeout: float, unroutable: Unrouted, payload: Payload | None
    ) -> Receipt:
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            (outcome,) = await self._broker.publish((encoded,), timeout)
        except BrokerError:
            self.stats.failed += 1
            raise
        if outcome.result is CONFIRMED.result:
            self.stats.published += 1
            if self._recorder.tells(encoded.id):
                self._tell_accepted(encoded, outcome, payload, 1, clock() - began)
            return Receipt(id=encoded.id, type=encoded.type, stored_at=utc_now())
        pending = _Pending(encoded, payload, began)
        self._take(pending, outcome, unroutable)
        result = pending.result or (await self._repeat([pending], began + timeout, unroutable))[0]
        if isinstance(result, Receipt):
            return result
        raise result

    async def publish_many(
        self,
        batch: Sequence[EncodedSignal],
        timeout: float,
        unroutable: Unrouted,
        payloads: Sequence[Payload | None] = (),
    ) -> list[Receipt]:
        """Publish a batch in order; ``timeout`` in seconds for all of it. Raises `BatchError`.

        ``payloads``: for the ledger, one for each signal, or none at all.
        """
        for encoded in batch:
            self.check_size(encoded)
        deadline = asyncio.get_running_loop().time() + timeout
        results: list[Receipt | SignalBusError] = []
        for start in range(0, len(batch), BATCH):
            end = start + BATCH
            results += await self._publish_chunk(batch[start:end], deadline, unroutable, payloads[start:end])
        receipts = [result for result in results if isinstance(result, Receipt)]
        if len(receipts) < len(results):
            raise BatchError(results)
        return receipts

    async def _publish_chunk(
        self,
        batch: Sequence[EncodedSignal],
        deadline: float,
        unroutable: Unrouted,
        payloads: Sequence[Payload | None],
    ) -> list[Receipt | SignalBusError]:
        if not self._telemetry.active:
            return await self._finish(_pending(batch, payloads), deadline, unroutable)
        with ExitStack() as stack:
            operations = [stack.enter_context(self._telemetry.sending(encoded)) for encoded in batch]
            carried = [operation.carried_by(encoded) for operation, encoded in zip(operations, batch, strict=True)]
            results = await self._finish(_pending(carried, payloads), deadline, unroutable)
            for operation, result in zip(operations, results, strict=True):
                if isinstance(result, SignalBusError):
                    operation.fail(result)
            return results

    def check_size(self, encoded: EncodedSignal) -> None:
        """Raise `InvalidSignal` if a signal is over the limit."""
        if len(encoded.body) + HEADERS_LIMIT > self._max_signal_bytes and encoded.size > self._max_signal_bytes:
            raise InvalidSignal(
                f"signal {encoded.id} has {encoded.size} bytes, more than max_signal_bytes={self._max_signal_bytes}; "
                "store the data elsewhere and publish a reference to it, or raise SIGNALBUS_MAX_SIGNAL_BYTES"
            )

    async def _finish(
        self, batch: list[_Pending], deadline: float, unroutable: Unrouted
    ) -> list[Receipt | SignalBusError]:
        """Send a batch until every signal of it has a result."""
        left = deadline - asyncio.get_running_loop().time()
        problem = await self._try(batch, max(left, 0.0), unroutable)
        if problem is not None:
            self.stats.failed += len(batch)
            return [problem] * len(batch)
        return await self._repeat(batch, deadline, unroutable)

    async def _repeat(
        self, batch: list[_Pending], deadline: float, unroutable: Unrouted
    ) -> list[Receipt | SignalBusError]:
        """Repeat what has no result yet, with growing pauses, until ``deadline``."""
        clock = asyncio.get_running_loop().time
        pause = FIRST_PAUSE
        problem: BrokerError | None = None
        while open_ := [pending for pending in batch if pending.result is None]:
            wait = random.uniform(pause / 2, pause)  # noqa: S311 - jitter, not a secret
            if problem is not None or clock() + wait >= deadline:
                for pending in open_:
                    pending.result = _given_up(pending)
                self.stats.failed += len(open_)
                break
            self.stats.repeated += len(open_)
            await asyncio.sleep(wait)
            pause = min(pause * 2, LONGEST_PAUSE)
            problem = await self._try(open_, max(deadline - clock(), 0.0), unroutable)
        return [pending.result for pending in batch if pending.result is not None]

    async def _try(self, batch: list[_Pending], timeout: float, unroutable: Unrouted) -> BrokerError | None:
        """Send once, and settle what is certain. Return the error if nothing could be sent until the deadline."""
        try:
            outcomes = await self._broker.publish([pending.encoded for pending in batch], timeout)
        except BrokerError as error:
            return error
        for pending, outcome in zip(batch, outcomes, strict=True):
            self._take(pending, outcome, unroutable)
        return None

    def _take(self, pending: _Pending, outcome: PublishOutcome, unroutable: Unrouted) -> None:
        encoded = pending.encoded
        pending.tries += 1
        match outcome.result:
            case PublishResult.CONFIRMED:
                self.stats.published += 1
                if self._recorder.tells(encoded.id):
                    took = asyncio.get_running_loop().time() - pending.began
                    self._tell_accepted(encoded, outcome, pending.payload, pending.tries, took)
                pending.result = Receipt(id=encoded.id, type=encoded.type, stored_at=utc_now(), attempts=pending.tries)
            case PublishResult.RETURNED:
                self.stats.unroutable += 1
                self._tell_unroutable(encoded, pending.payload)
                if unroutable == "raise":
                    pending.result = Unroutable(encoded.id, encoded.type)
                else:
                    pending.result = Receipt(
                        id=encoded.id, type=encoded.type, stored_at=utc_now(), routed=False, attempts=pending.tries
                    )
            case PublishResult.REFUSED:
                pending.reason = outcome.reason
            case PublishResult.UNKNOWN:
                pending.sent = True
                pending.reason = outcome.reason

    def _tell_accepted(
        self, encoded: EncodedSignal, outcome: PublishOutcome, payload: Payload | None, tries: int, seconds: float
    ) -> None:
        where = outcome.subscriptions
        self._recorder.accepted(encoded.id, encoded.type, *told(encoded), where, payload, tries, seconds)

    def _tell_unroutable(self, encoded: EncodedSignal, payload: Payload | None) -> None:
        self._recorder.unroutable(encoded.id, encoded.type, *told(encoded), payload)


def _pending(batch: Sequence[EncodedSignal], payloads: Sequence[Payload | None]) -> list[_Pending]:
    began = asyncio.get_running_loop().time()
    if not payloads:
        return [_Pending(encoded, None, began) for encoded in batch]
    return [_Pending(encoded, payload, began) for encoded, payload in zip(batch, payloads, strict=True)]


def _given_up(pending: _Pending) -> SignalBusError:
    if pending.sent:
        return PublishUnconfirmed(pending.encoded.id, pending.reason)
    return Backpressure(
        f"the broker refuses signal {pending.encoded.id}: {pending.reason}; it is not stored for every subscription"
    )
