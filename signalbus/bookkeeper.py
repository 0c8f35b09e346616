"""Bookkeeping: takes what a bus recorded to its broker, in batches, beside the way of signals."""

from __future__ import annotations

import asyncio

from .brokers.base import Broker
from .ledger import Batch, Recorder

CARRY_SECONDS = 0.05  # that a fact waits for others, at most
BATCH_FACTS = 250  # of one batch: some 25 kB, and some milliseconds to file
CARRY_BATCHES = 40  # at a time: beyond that, the event loop has its turn first


class Bookkeeper:
    """Carries facts from ``recorder`` to ``broker`` from `begin` until `close`. On the event loop."""

    # A timer, and no child of the bus' supervisor: what is wrong with the ledger must never give the bus up.

    def __init__(self, recorder: Recorder, broker: Broker) -> None:
        self._recorder = recorder
        self._broker = broker
        self._timer: asyncio.TimerHandle | None = None
        self._open = False
        recorder.stirred = self._stirred

    def begin(self) -> None:
        """Carry what was told, and what is told from now on."""
        self._open = True
        if len(self._recorder):
            self._stirred()

    def close(self) -> None:
        """Carry everything that is left, and nothing afterwards. Idempotent."""
        if not self._open:
            return
        self._open = False
        if self._timer is not None:
            self._timer.cancel()
        while batches := self._taken():
            self._broker.append(batches)

    def _stirred(self) -> None:
        if self._open and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(CARRY_SECONDS, self._carry)

    def _carry(self) -> None:
        self._timer = None
        try:
            if batches := self._taken():
                self._broker.append(batches)
        finally:
            if len(self._recorder):
                self._stirred()

    def _taken(self) -> list[Batch]:
        batches: list[Batch] = []
        while len(batches) < CARRY_BATCHES and (batch := self._recorder.take(BATCH_FACTS)) is not None:
            batches.append(batch)
        return batches
