"""Facts as a busy bus tells them, for measurements: many types and subscriptions, failures, causes and payloads."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from signalbus.ledger import Batch, Origin
from signalbus.ledger.facts import Row

START = 1_790_000_000.0
BATCH = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """``signals`` of them, spread over ``seconds``. Two facts a signal and two a delivery, nearly."""

    signals: int
    seconds: float = 86_400.0
    types: int = 200
    subscriptions: int = 20
    seed: int = 7

    def batches(self) -> Iterator[Batch]:
        """Yield batches of publishers and subscribers, in turn."""
        dice = random.Random(self.seed)
        publishers = [_Teller(f"shop-{number}") for number in range(4)]
        subscribers = [_Teller(f"billing-{number}") for number in range(8)]
        previous = ""
        for number in range(self.signals):
            at = START + self.seconds * number / self.signals
            signal = signal_id(at, dice)
            kind = min(int(dice.expovariate(12 / self.types)), self.types - 1)
            names = tuple(f"sub-{(kind + step * 7) % self.subscriptions}" for step in range(1 + kind % 2))
            data = f'{{"order_id":"A-{number}","customer":{dice.randrange(50_000)},"total":12.5,"paid":true}}'
            cause = previous if number % 5 == 4 else None
            publisher = publishers[number % 4]
            head = ("accepted", at, signal, f"type.t{kind}", "shop", None, None, None, cause)
            publisher.rows.append((*head, None, names, data, False, 1, 0.002))
            for name in names:
                subscribers[dice.randrange(8)].deliver(signal, f"type.t{kind}", name, at + 0.01, dice)
            previous = signal
            for teller in (publisher, *subscribers):
                if len(teller.rows) >= BATCH:
                    yield teller.batch()
        yield from (teller.batch() for teller in (*publishers, *subscribers) if teller.rows)


def signal_id(at: float, dice: random.Random) -> str:
    """Return a UUIDv7 of a time."""
    return str(UUID(int=int(at * 1000) << 80 | 7 << 76 | dice.getrandbits(12) << 64 | 2 << 62 | dice.getrandbits(62)))


class _Teller:
    def __init__(self, name: str) -> None:
        self.origin = Origin(recorder=f"{name}-recorder", session=f"{name}-session", name=name, host="web-1", pid=7)
        self.rows: list[Row] = []
        self._first = 1

    def batch(self) -> Batch:
        made = Batch(origin=self.origin, first=self._first, rows=self.rows)
        self._first += len(self.rows)
        self.rows = []
        return made

    def deliver(self, signal: str, kind: str, subscription: str, at: float, dice: random.Random) -> None:
        luck = dice.random()
        self.rows.append(("delivered", at, signal, kind, subscription, 1, 0, 0.003, None))
        if luck < 0.98:
            self.rows.append(("acked", at + 0.01, signal, kind, subscription, 1, 0, 0.01))
            return
        self.rows.append(("retried", at + 0.01, signal, kind, subscription, 1, 0, 0.01, "TimeoutError", "gateway", 1.0))
        if luck < 0.995:
            self.rows.append(("delivered", at + 1.0, signal, kind, subscription, 2, 0, 1.0, None))
            self.rows.append(("acked", at + 1.1, signal, kind, subscription, 2, 0, 0.01))
        elif luck < 0.999:
            self.rows.append(("dead", at + 1.1, signal, kind, subscription, 2, 0, 0.01, "attempts exhausted", "", ""))
