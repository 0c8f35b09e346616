"""Kill -9 at any moment, again and again: nothing confirmed is lost, nothing acked comes back."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.brokers.sqlite.support import SECONDS, Peer, Place, data_of, receive


async def _lines_until_killed(peer: Peer, after: float) -> list[str]:
    """Let a peer run for a while, kill it, and return what it had said."""
    assert await peer.line(60.0) == "ready"
    await asyncio.sleep(after)
    peer.kill()
    lines: list[str] = []
    while line := await peer.line():
        lines.append(line)
    return lines


async def _rounds(place: Place, rounds: int, seed: int) -> None:
    chance = random.Random(seed)
    confirmed: set[int] = set()
    handled: list[int] = []
    begun: set[int] = set()
    for number in range(rounds):
        writers = [place.peer("publish", (number * 2 + writer) * 100_000, 100_000) for writer in range(2)]
        readers = [place.peer("handle") for _ in range(2)]
        ends = [chance.uniform(0.05, 0.4) for _ in range(4)]
        said = await asyncio.gather(*(_lines_until_killed(p, e) for p, e in zip(writers + readers, ends, strict=True)))
        for lines in said[:2]:
            confirmed.update(int(line) for line in lines if line.isdecimal())
        for lines in said[2:]:
            handled += [int(line) for line in lines if line.isdecimal()]
            begun.update(int(line.removeprefix("settling ")) for line in lines if line.startswith("settling "))
        for peer in writers + readers:
            peer.end()
    with place.raw() as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    broker = await place.open()
    stored = (await place.queue(broker)).ready
    consumer = await broker.consume("work", 65_535, SECONDS)
    left = [data_of(incoming) for incoming in await receive(consumer, stored, 60.0)]
    assert len(confirmed) > 10 * rounds
    assert len(handled) > rounds
    # What was being settled as its process was killed may be settled or not.
    assert confirmed <= set(left) | set(handled) | begun, "confirmed, but neither handled nor stored"
    assert not set(left) & set(handled), "acked, but still stored"
    assert len(left) == len(set(left))
    assert len(handled) == len(set(handled)), "acked twice"


async def test_nothing_is_lost_when_processes_are_killed(place: Place) -> None:
    """Row 64, once."""
    await _rounds(place, 1, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_nothing_is_lost_when_processes_are_killed_again_and_again(place: Place, seed: int) -> None:
    """Row 64, in a loop."""
    await _rounds(place, 10, seed)
