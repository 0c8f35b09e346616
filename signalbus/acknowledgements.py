"""Hearing what became of a signal: subscribers tell the session that published it, if that asked to be told.

The address travels with the signal (`codec.RECEIPT_TO`), the word goes from session to session, at most once. So what
is not heard is not known, and never guessed: the settlement itself is as safe as any other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import cast

import orjson

from .delivery import Ack, DeadLetter, Settlement
from .errors import BrokerError, BusClosed
from .receipts import Outcome, SubscriptionOutcome

log = logging.getLogger(__name__)

KIND = "settled"  # what these messages call themselves
DETAIL_CHARACTERS = 500
CLOSE_SECONDS = 2.0  # for words that are still on their way when the bus closes


class Awaited:
    """One signal whose settlements are waited for."""

    def __init__(self, subscriptions: Iterable[str]) -> None:
        self.outcomes = {
            name: SubscriptionOutcome(subscription=name, outcome=Outcome.PENDING) for name in subscriptions
        }
        self._settled = asyncio.Event()
        self._look()

    def note(self, outcome: SubscriptionOutcome) -> None:
        """Take an outcome; also of a subscription that nobody knew of when the signal was published."""
        self.outcomes[outcome.subscription] = outcome
        self._look()

    async def wait(self, timeout: float) -> bool:
        """Wait until every subscription has settled it; False after ``timeout`` seconds."""
        try:
            async with asyncio.timeout(max(timeout, 0.0)):
                await self._settled.wait()
        except TimeoutError:
            return False
        return True

    def results(self) -> tuple[SubscriptionOutcome, ...]:
        """Return what is known, by name."""
        return tuple(self.outcomes[name] for name in sorted(self.outcomes))

    def _look(self) -> None:
        if all(each.outcome is not Outcome.PENDING for each in self.outcomes.values()):
            self._settled.set()


class Acknowledgements:
    """Both ends: who waits in this session, and telling others. ``send`` is `Broker.send`."""

    def __init__(self, send: Callable[[str, bytes], Awaitable[None]]) -> None:
        self._send = send
        self._awaited: dict[str, list[Awaited]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # The publisher's end

    def expect(self, signal_id: str, subscriptions: Iterable[str]) -> Awaited:
        """Begin to listen, before the signal is published; `forget` afterwards."""
        awaited = Awaited(subscriptions)
        self._awaited.setdefault(signal_id, []).append(awaited)
        return awaited

    def forget(self, signal_id: str, awaited: Awaited) -> None:
        """Stop listening."""
        others = [other for other in self._awaited.get(signal_id, ()) if other is not awaited]
        if others:
            self._awaited[signal_id] = others
        else:
            self._awaited.pop(signal_id, None)

    def take(self, message: Mapping[str, object]) -> None:
        """Take what a subscriber told us."""
        try:
            outcome = SubscriptionOutcome(
                subscription=str(message["subscription"]),
                outcome=Outcome(str(message["outcome"])),
                session=str(message["session"]),
                detail=str(message["detail"]),
            )
            signal_id = str(message["signal"])
        except (KeyError, ValueError) as error:
            log.warning("a malformed acknowledgement was dropped: %r", error)
            return
        for awaited in self._awaited.get(signal_id, ()):
            awaited.note(outcome)

    # The subscriber's end

    def tell(self, to: str, signal_id: str, subscription: str, settlement: Settlement, session: str) -> None:
        """Tell a session what became of its signal, in the background; nothing if that is not final."""
        match settlement:
            case Ack():
                outcome, detail = Outcome.ACKED, ""
            case DeadLetter():
                outcome, detail = Outcome.DEAD, f"{settlement.reason}: {settlement.detail}"[:DETAIL_CHARACTERS]
            case _:
                return
        message: dict[str, str] = {
            "kind": KIND,
            "signal": signal_id,
            "subscription": subscription,
            "outcome": outcome.value,
            "session": session,
            "detail": detail,
        }
        if to == session:
            self.take(cast("Mapping[str, object]", message))
            return
        task = asyncio.create_task(self._pass_on(to, orjson.dumps(message)), name=f"tell {to}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """Let what is on its way arrive, within two seconds."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=CLOSE_SECONDS)
            for task in late:
                task.cancel()

    async def _pass_on(self, to: str, message: bytes) -> None:
        try:
            await self._send(to, message)
        except (BrokerError, BusClosed) as error:
            # Its publisher waits until its deadline, and then says "pending".
            log.warning("session %s could not be told of a settlement: %s", to, error)
