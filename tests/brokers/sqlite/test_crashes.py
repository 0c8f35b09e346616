"""Kill -9 at any moment, again and again: nothing confirmed is lost, nothing acked comes back."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.brokers.sqlite.support import SECONDS, Peer, Place, data_of, receive
from tests.support import eventually


async def _listen(peer: Peer, lines: list[str]) -> None:
    while line := await peer.line(60.0):
        lines.append(line)


async def _kill_at_work(peer: Peer, lines: list[str], after: float) -> None:
    # Twelve steps: on the slowest disk it has done something by then that must not be lost.
    await eventually(lambda: len(lines) > 12, 60.0, message="the process to get to work")
    await asyncio.sleep(after)
    peer.kill()


async def _all_killed(writers: list[Peer], readers: list[Peer], after: list[float]) -> list[list[str]]:
    """Kill all of them at different times, and return what each had said.

    One writer is the last: until then, readers have something to be killed over.
    """
    peers = [*writers, *readers]
    said: list[list[str]] = [[] for _ in peers]
    # All are listened to from the start: one whose pipe is full would stop.
    listening = [asyncio.create_task(_listen(peer, lines)) for peer, lines in zip(peers, said, strict=True)]
    await asyncio.gather(*(_kill_at_work(peers[number], said[number], after[number]) for number in range(1, 4)))
    await _kill_at_work(peers[0], said[0], after[0])
    await asyncio.gather(*listening)
    return said


async def _rounds(place: Place, rounds: int, seed: int) -> None:
    chance = random.Random(seed)
    confirmed: set[int] = set()
    handled: list[int] = []
    begun: set[int] = set()
    for number in range(rounds):
        writers = [place.peer("publish", (number * 2 + writer) * 100_000, 100_000) for writer in range(2)]
        readers = [place.peer("handle") for _ in range(2)]
        ends = [chance.uniform(0.05, 0.4) for _ in range(4)]
        said = await _all_killed(writers, readers, ends)
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
