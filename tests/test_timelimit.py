"""One time limit for many tasks."""

from __future__ import annotations

import asyncio

import pytest

from signalbus.timelimit import TimeLimit

LIMIT = 0.02
DEADLINE = 5.0


async def limited(limit: TimeLimit, work: asyncio.Future[None]) -> tuple[bool, bool]:
    """Wait for ``work`` under a limit; return whether that was cancelled, and whether the limit did it."""
    task = asyncio.current_task()
    assert task is not None
    limit.begin(task, asyncio.get_running_loop().time())
    cancelled = False
    try:
        await work
    except asyncio.CancelledError:
        cancelled = True
    return cancelled, limit.end(task)


def never() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


async def test_who_takes_longer_is_cancelled_and_told_so() -> None:
    assert await asyncio.wait_for(limited(TimeLimit(LIMIT), never()), DEADLINE) == (True, True)


async def test_who_is_in_time_is_left_alone() -> None:
    limit = TimeLimit(DEADLINE)
    done = never()
    done.set_result(None)
    assert await limited(limit, done) == (False, False)
    limit.close()


async def test_each_of_many_has_the_whole_of_its_time() -> None:
    limit, clock = TimeLimit(LIMIT), asyncio.get_running_loop().time

    async def timed() -> float:
        began = clock()
        assert await limited(limit, never()) == (True, True)
        return clock() - began

    first = asyncio.create_task(timed())
    await asyncio.wait([first], timeout=LIMIT / 2)
    second = asyncio.create_task(timed())
    for took in await asyncio.wait_for(asyncio.gather(first, second), DEADLINE):
        assert took >= LIMIT * 0.95


async def test_the_limit_begins_anew_after_all_have_ended() -> None:
    limit = TimeLimit(LIMIT)
    assert await asyncio.wait_for(limited(limit, never()), DEADLINE) == (True, True)
    assert await asyncio.wait_for(limited(limit, never()), DEADLINE) == (True, True)


async def test_another_ones_cancellation_is_not_the_limits() -> None:
    limit = TimeLimit(DEADLINE)
    begun = asyncio.Event()

    async def work() -> tuple[bool, bool]:
        begun.set()
        return await limited(limit, never())

    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()
    assert await task == (True, False)
    assert task.cancelling() == 1
    limit.close()


async def test_a_cancellation_of_both_is_the_others() -> None:
    limit = TimeLimit(LIMIT)
    told: list[bool] = []

    async def work() -> None:
        task = asyncio.current_task()
        assert task is not None
        limit.begin(task, asyncio.get_running_loop().time())
        with pytest.raises(asyncio.CancelledError):
            await never()
        task.cancel()
        told.append(limit.end(task))

    task = asyncio.create_task(work())
    await asyncio.wait([task], timeout=DEADLINE)
    assert told == [False]
    assert task.cancelled()


async def test_the_cancellation_of_the_limit_leaves_no_trace() -> None:
    limit = TimeLimit(LIMIT)

    async def work() -> int:
        await limited(limit, never())
        task = asyncio.current_task()
        assert task is not None
        await asyncio.sleep(0)
        return task.cancelling()

    assert await asyncio.wait_for(asyncio.create_task(work()), DEADLINE) == 0
