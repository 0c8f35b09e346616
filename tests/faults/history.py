"""A history of publishes and effects, and its check: Jepsen's total-queue, with the invariants of this project.

Every published value is unique. An operation is invoked, then ends ok (stored), fail (certainly not stored) or info
(unknown). Duplicates are allowed on the way in; with `at_most` they are counted too.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from signalbus import Bus, PublishUnconfirmed, Signal, SignalBusError
from tests.brokers.world import World

Value = int | str


@dataclass
class History:
    """What publishers did. ``slowest`` in seconds, over the timeout that was given."""

    invoked: set[Value] = field(default_factory=set)
    ok: set[Value] = field(default_factory=set)
    failed: set[Value] = field(default_factory=set)
    info: set[Value] = field(default_factory=set)
    slowest: float = 0.0
    repeated: int = 0
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def publish(self, bus: Bus, value: Value | None = None, *, timeout: float = 5.0) -> None:
        """Publish one value and write down how it ended."""
        value = next(self._numbers) if value is None else value
        clock = asyncio.get_running_loop().time
        started = clock()
        self.invoked.add(value)
        try:
            receipt = await bus.publish(Signal(type="work.item", data=value), timeout=timeout)
        except PublishUnconfirmed:
            self.info.add(value)
        except SignalBusError:
            self.failed.add(value)
        else:
            self.ok.add(value)
            self.repeated += receipt.attempts > 1
        finally:
            self.slowest = max(self.slowest, clock() - started - timeout)
            self._changed.set()
            self._changed = asyncio.Event()

    async def keep_publishing(self, bus: Bus, until: asyncio.Event, *, timeout: float = 5.0) -> None:
        """Publish value after value until told to stop."""
        while not until.is_set():
            await self.publish(bus, timeout=timeout)

    async def wait_ok(self, count: int, timeout: float = 30.0) -> None:
        """Wait until `count` publishes more than now are stored."""
        target = len(self.ok) + count
        async with asyncio.timeout(timeout):
            while len(self.ok) < target:
                await self._changed.wait()

    def check(self, received: Iterable[Value], dead: Iterable[Value] = ()) -> None:
        """Assert S1, S2 and S4 on what was handled and what was given up, after everything has come to rest."""
        arrived = {*received, *dead}
        assert not sorted_(self.ok - arrived), f"S1: {len(self.ok - arrived)} of {len(self.ok)} stored were lost"
        assert not sorted_(arrived - self.invoked), "S2: phantoms"
        assert not sorted_(self.failed & arrived), "S4: 'not stored', but it arrived"


def sorted_(values: set[Value]) -> list[Value]:
    """Return the first few, for messages."""
    return sorted(values, key=str)[:20]


def read_history(world: World) -> History:
    """Return what publishing worker processes logged; one that was killed leaves its last operation as info."""
    history = History()
    for entry in world.steps():
        match entry["step"]:
            case "invoke":
                history.invoked.add(entry["data"])
            case "ok":
                history.ok.add(entry["data"])
            case "fail":
                history.failed.add(entry["data"])
            case _:
                pass
    history.info = history.invoked - history.ok - history.failed
    return history


def effects(world: World) -> Counter[Any]:
    """Return how often each value had its effect in worker processes."""
    return Counter(entry["data"] for entry in world.steps("effect"))


def pids(world: World, step: str = "effect") -> set[int]:
    """Return the processes that logged a step."""
    return {entry["pid"] for entry in world.steps(step)}
