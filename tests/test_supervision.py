"""Children are restarted, and given up when they fail too often."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from signalbus.supervision import MAX_RESTARTS, PERIOD, Supervisor


class Escalations:
    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.event = asyncio.Event()

    def __call__(self, error: BaseException) -> None:
        self.errors.append(error)
        self.event.set()


class Child:
    """Fails as often as told, then runs until cancelled."""

    def __init__(self, failures: int, error: type[BaseException] = ValueError) -> None:
        self.failures = failures
        self.error = error
        self.starts = 0
        self.running = asyncio.Event()
        self.cancelled = False

    async def __call__(self) -> None:
        self.starts += 1
        if self.starts <= self.failures:
            raise self.error(f"failure {self.starts}")
        self.running.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled = True


def test_the_defaults_are_those_of_the_promise() -> None:
    assert MAX_RESTARTS == 3
    assert timedelta(seconds=5) == PERIOD


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
async def test_a_failed_child_is_started_again(error: type[BaseException]) -> None:
    escalations, child = Escalations(), Child(3, error)
    supervisor = Supervisor("s", escalations)
    supervisor.start("child", child)
    await asyncio.wait_for(child.running.wait(), 5)
    assert child.starts == 4
    assert escalations.errors == []
    await supervisor.aclose()
    assert child.cancelled


async def test_the_fourth_failure_in_the_period_escalates_once() -> None:
    escalations, child, other = Escalations(), Child(100), Child(100)
    supervisor = Supervisor("s", escalations)
    tasks = [supervisor.start("child", child), supervisor.start("other", other)]
    await asyncio.wait_for(asyncio.wait(tasks), 5)
    assert [str(error) for error in escalations.errors] == ["failure 4"]
    assert (child.starts, other.starts) == (4, 1)  # the count is the supervisor's, so one more failure is too many
    assert supervisor.children() == []


async def test_old_failures_are_forgotten() -> None:
    escalations = Escalations()
    supervisor = Supervisor("s", escalations, max_restarts=1, period=timedelta(seconds=0.05))
    starts = 0
    done = asyncio.Event()

    async def child() -> None:
        nonlocal starts
        starts += 1
        if starts > 4:
            done.set()
            return
        await asyncio.sleep(0.06)
        raise ValueError

    supervisor.start("child", child)
    await asyncio.wait_for(done.wait(), 5)
    assert escalations.errors == []


async def test_one_for_one_the_others_go_on() -> None:
    escalations, healthy, failing = Escalations(), Child(0), Child(100)
    supervisor = Supervisor("s", escalations)
    supervisor.start("healthy", healthy)
    supervisor.start("failing", failing)
    await asyncio.wait_for(escalations.event.wait(), 5)
    await asyncio.sleep(0)
    assert healthy.starts == 1
    assert not healthy.cancelled
    assert supervisor.children() == ["healthy"]
    await supervisor.aclose()


async def test_a_child_that_returns_is_done() -> None:
    async def child() -> None:
        return

    escalations = Escalations()
    supervisor = Supervisor("s", escalations)
    await asyncio.wait_for(supervisor.start("child", child), 5)
    assert supervisor.children() == []
    assert escalations.errors == []


async def test_closing_cancels_the_newest_first_and_waits() -> None:
    ended: list[str] = []
    started = asyncio.Event()

    def child(name: str) -> Supervisor:
        async def run() -> None:
            if name == "c":
                started.set()
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.01)
                ended.append(name)

        supervisor.start(name, run)
        return supervisor

    supervisor = Supervisor("s", Escalations())
    for name in "abc":
        child(name)
    await started.wait()
    await supervisor.aclose()
    assert ended == ["c", "b", "a"]
    await supervisor.aclose()
