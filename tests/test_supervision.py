"""Children are restarted as their specifications and the strategy say, and given up when they fail too often."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

import pytest

from signalbus.errors import ConfigError, Escalated
from signalbus.supervision import (
    MAX_RESTARTS,
    PERIOD,
    ChildError,
    ChildInfo,
    ChildSpec,
    ChildState,
    Restart,
    Strategy,
    Supervisor,
)

DEADLINE = 10.0
PERMANENT, TRANSIENT, TEMPORARY = Restart.PERMANENT, Restart.TRANSIENT, Restart.TEMPORARY


class Boom(Exception):
    pass


class Clock:
    """Stands still unless told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Kid:
    """A child that notes its starts (+name) and ends (-name) in a journal, and ends when and how it is told."""

    def __init__(
        self, name: str, journal: list[str], restart: Restart = PERMANENT, *, ready: bool = False, bad_starts: int = 0
    ) -> None:
        self.name = name
        self.journal = journal
        self.ready = asyncio.Event() if ready or bad_starts else None
        self.bad_starts = bad_starts  # starts that fail, after the first
        self.starts = 0
        self.task: asyncio.Task[object] | None = None
        self.running = asyncio.Event()
        self.orders: asyncio.Future[None]
        self.spec = ChildSpec(name=name, start=self.run, restart=restart, ready=self.ready)

    async def run(self) -> None:
        self.starts += 1
        self.task = asyncio.current_task()
        if 1 < self.starts <= 1 + self.bad_starts:
            self.journal.append(f"!{self.name}")
            raise Boom(f"{self.name} cannot start")
        self.journal.append(f"+{self.name}")
        self.orders = asyncio.get_running_loop().create_future()
        if self.ready is not None:
            self.ready.set()
        self.running.set()
        try:
            await self.orders
        finally:
            self.running.clear()
            self.journal.append(f"-{self.name}")

    async def end(self, how: str) -> None:
        """End it, and return when its supervisor has the news in its mailbox."""
        await within(self.running.wait())
        task = self.task
        assert task is not None
        match how:
            case "raise":
                self.orders.set_exception(Boom(f"{self.name} failed"))
            case "return":
                self.orders.set_result(None)
            case "driver":
                self.orders.cancel()  # as drivers do: cancelled, though nobody cancelled the child
            case _:
                task.cancel()
        await within(asyncio.wait([task]))


async def within(work: Awaitable[object]) -> None:
    async with asyncio.timeout(DEADLINE):
        await work


async def settled(supervisor: Supervisor) -> None:
    """Wait until a supervisor has done all that is in its mailbox; what that starts has begun to run."""
    for _ in range(4):  # a try to start again goes to the end of the mailbox
        with pytest.raises(ChildError, match="no child"):
            await supervisor.delete_child("(nobody)")


async def running(*kids: Kid) -> None:
    for kid in kids:
        await within(kid.running.wait())


def kids_of(journal: list[str], restarts: Sequence[Restart], *, ready: bool) -> list[Kid]:
    return [Kid("abcdef"[index], journal, restart, ready=ready) for index, restart in enumerate(restarts)]


def states(supervisor: Supervisor) -> dict[str, ChildState]:
    return {child.name: child.state for child in supervisor.which_children()}


class Escalations:
    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.event = asyncio.Event()

    def __call__(self, error: BaseException) -> None:
        self.errors.append(error)
        self.event.set()


def test_the_defaults_are_those_of_the_promise() -> None:
    assert MAX_RESTARTS == 3
    assert timedelta(seconds=5) == PERIOD


# Strategies


def expected(strategy: Strategy, kids: Sequence[Kid], victim: int, how: str) -> tuple[list[str], dict[str, ChildState]]:
    """What has to happen when a child ends: written down from OTP's documentation, apart from the code."""
    types = {kid.name: kid.spec.restart for kid in kids}
    names = list(types)
    name = names[victim]
    again = types[name] is PERMANENT or (types[name] is TRANSIENT and how != "return")
    if not again:
        left = {other: ChildState.RUNNING for other in names if other != name}
        if types[name] is TRANSIENT:
            left = {other: left.get(other, ChildState.STOPPED) for other in names}
        return [f"-{name}"], left
    first = {Strategy.ONE_FOR_ONE: victim, Strategy.REST_FOR_ONE: victim, Strategy.ONE_FOR_ALL: 0}[strategy]
    last = victim + 1 if strategy is Strategy.ONE_FOR_ONE else len(names)
    group = names[first:last]
    events = [f"-{name}"] + [f"-{other}" for other in reversed(group) if other != name]
    events += [f"+{other}" for other in group if types[other] is not TEMPORARY]
    gone = {other for other in group if types[other] is TEMPORARY}
    return events, {other: ChildState.RUNNING for other in names if other not in gone}


@pytest.mark.parametrize("ready", [False, True])
@pytest.mark.parametrize("how", ["raise", "return", "driver", "cancel"])
@pytest.mark.parametrize("strategy", list(Strategy))
async def test_ending_any_child_restarts_exactly_what_the_strategy_says(
    strategy: Strategy, how: str, ready: bool
) -> None:
    for count in range(1, 4):
        for restarts in itertools.product(Restart, repeat=count):
            for victim in range(count):
                journal: list[str] = []
                kids = kids_of(journal, restarts, ready=ready)
                async with Supervisor("s", children=[kid.spec for kid in kids], strategy=strategy) as supervisor:
                    await running(*kids)
                    assert journal == [f"+{kid.name}" for kid in kids]
                    tasks = {kid.name: kid.task for kid in kids}
                    journal.clear()
                    await kids[victim].end(how)
                    await settled(supervisor)
                    events, left = expected(strategy, kids, victim, how)
                    assert journal == events, (restarts, victim)
                    assert states(supervisor) == left, (restarts, victim)
                    for kid in kids:
                        touched = any(event[1:] == kid.name for event in events)
                        assert (kid.task is tasks[kid.name]) == (f"+{kid.name}" not in events)
                        assert touched or kid.starts == 1
                    journal.clear()
                    alive = [name for name, state in left.items() if state is ChildState.RUNNING]
                assert journal == [f"-{name}" for name in reversed(alive)]


@pytest.mark.parametrize("strategy", [Strategy.REST_FOR_ONE, Strategy.ONE_FOR_ALL])
async def test_a_stopped_child_of_the_group_is_started_with_it(strategy: Strategy) -> None:
    journal: list[str] = []
    kids = kids_of(journal, [PERMANENT, TRANSIENT], ready=False)
    async with Supervisor("s", children=[kid.spec for kid in kids], strategy=strategy) as supervisor:
        await running(*kids)
        await kids[1].end("return")
        await settled(supervisor)
        assert states(supervisor)["b"] is ChildState.STOPPED
        await kids[0].end("raise")
        await settled(supervisor)
        assert journal == ["+a", "+b", "-b", "-a", "+a", "+b"]


async def test_two_children_that_fail_at_once_are_restarted_once_together() -> None:
    journal: list[str] = []
    kids = kids_of(journal, [PERMANENT, PERMANENT], ready=False)
    children = [kid.spec for kid in kids]
    async with Supervisor("s", children=children, strategy=Strategy.ONE_FOR_ALL) as supervisor:
        await running(*kids)
        for kid in kids:
            kid.orders.set_exception(Boom("both"))
        await within(asyncio.wait([kid.task for kid in kids if kid.task is not None]))
        await settled(supervisor)
        assert [kid.starts for kid in kids] == [2, 2]


@pytest.mark.parametrize("strategy", list(Strategy))
async def test_a_failure_in_a_subtree_that_the_subtree_mends_is_not_seen_above(strategy: Strategy) -> None:
    journal: list[str] = []
    a, b, c, d = kids_of(journal, [PERMANENT] * 4, ready=False)
    sub = Supervisor("sub", children=[b.spec, c.spec], strategy=Strategy.ONE_FOR_ALL)
    async with Supervisor("root", children=[a.spec, sub.as_child(), d.spec], strategy=strategy) as root:
        await running(a, b, c, d)
        journal.clear()
        await c.end("raise")
        await settled(sub)
        assert journal == ["-c", "-b", "+b", "+c"]
        assert [child.restarts for child in root.which_children()] == [0, 0, 0]
    assert journal[-4:] == ["-d", "-c", "-b", "-a"]


@pytest.mark.parametrize(
    ("strategy", "events"),
    [
        (Strategy.ONE_FOR_ONE, ["-c", "-b", "+b", "+c"]),
        (Strategy.REST_FOR_ONE, ["-c", "-b", "-d", "+b", "+c", "+d"]),
        (Strategy.ONE_FOR_ALL, ["-c", "-b", "-d", "-a", "+a", "+b", "+c", "+d"]),
    ],
)
@pytest.mark.parametrize("restart", [PERMANENT, TRANSIENT])
async def test_a_subtree_that_gives_up_is_a_failed_child_of_its_parent(
    strategy: Strategy, events: list[str], restart: Restart
) -> None:
    journal: list[str] = []
    a, b, c, d = kids_of(journal, [PERMANENT] * 4, ready=False)
    sub = Supervisor("sub", children=[b.spec, c.spec], max_restarts=0)
    children = [a.spec, sub.as_child(restart=restart), d.spec]
    async with Supervisor("root", children=children, strategy=strategy) as root:
        await running(a, b, c, d)
        before = root.which_children()[1]
        assert before == ChildInfo(
            name="sub", restart=restart, state=ChildState.RUNNING, restarts=0, task="root/sub", error=None
        )
        task = d.task
        journal.clear()
        await c.end("raise")
        await within(b.running.wait())
        while len(journal) < len(events):
            await settled(root)
        await running(a, b, c, d)
        assert journal == events
        assert (d.task is task) == ("+d" not in events)
        after = root.which_children()[1]
        assert after.restarts == 1
        assert after.error is not None
        assert "Escalated" in after.error


async def test_failures_climb_to_the_root_and_end_everything_in_reverse() -> None:
    journal: list[str] = []
    a, b, c = kids_of(journal, [PERMANENT] * 3, ready=True)
    leaf = Supervisor("leaf", children=[b.spec, c.spec], max_restarts=0)
    middle = Supervisor("middle", children=[leaf.as_child()], max_restarts=0)

    async def body() -> None:
        async with Supervisor("root", children=[a.spec, middle.as_child()], max_restarts=0):
            assert journal == ["+a", "+b", "+c"]
            await b.end("raise")
            await asyncio.Event().wait()

    with pytest.raises(Escalated, match=r"'root' gave up.*'middle'") as caught:
        await within(body())
    assert journal == ["+a", "+b", "+c", "-b", "-c", "-a"]
    causes = []
    error: BaseException | None = caught.value
    while error is not None:
        causes.append(type(error))
        error = error.__cause__
    assert causes == [Escalated, Escalated, Escalated, Boom]


async def test_a_restarted_subtree_begins_afresh() -> None:
    journal: list[str] = []
    a, b = kids_of(journal, [PERMANENT, PERMANENT], ready=True)
    sub = Supervisor("sub", children=[a.spec], max_restarts=0)
    async with Supervisor("root", children=[sub.as_child()]) as root:
        await sub.start_child(b.spec)
        await a.end("raise")
        while a.starts < 2:
            await settled(root)
        await within(sub.ready.wait())
        assert list(states(sub)) == ["a"]
        assert journal == ["+a", "+b", "-a", "-b", "+a"]
        await sub.start_child(b.spec)


async def test_a_restarted_subtree_counts_its_restarts_from_zero() -> None:
    kid = Kid("a", [], ready=True)
    sub = Supervisor("sub", children=[kid.spec], max_restarts=1, clock=Clock())
    async with Supervisor("root", children=[sub.as_child()]) as root:
        for _ in range(3):
            await kid.end("raise")
            await settled(root)
        await within(sub.ready.wait())
        await settled(sub)
        assert kid.starts == 4
        assert root.which_children()[0].restarts == 1


# Starting


async def test_a_restarted_child_is_starting_until_it_is_ready_again() -> None:
    again, release = asyncio.Event(), asyncio.Event()

    class Slow(Kid):
        async def run(self) -> None:
            if self.starts == 1:
                again.set()
                await release.wait()
            await super().run()

    kid, other = Slow("a", [], ready=True), Kid("b", [], ready=True)
    async with Supervisor("s", children=[kid.spec, other.spec], strategy=Strategy.ONE_FOR_ALL) as supervisor:
        await kid.end("raise")
        await within(again.wait())
        for _ in range(10):  # turns of the event loop in which the other could be started too early
            await asyncio.sleep(0)
        assert other.starts == 1
        assert states(supervisor)["a"] is ChildState.STARTING
        release.set()
        await running(kid, other)
        await settled(supervisor)
        assert set(states(supervisor).values()) == {ChildState.RUNNING}


async def test_the_next_child_is_started_once_the_one_before_is_ready() -> None:
    entered, release, ready = asyncio.Event(), asyncio.Event(), asyncio.Event()
    journal: list[str] = []

    async def slow() -> None:
        entered.set()
        await release.wait()
        journal.append("slow is ready")
        ready.set()
        await asyncio.Event().wait()

    second = Kid("second", journal)
    supervisor = Supervisor("s", children=[ChildSpec(name="slow", start=slow, ready=ready), second.spec])
    opening = asyncio.create_task(supervisor.__aenter__())
    await within(entered.wait())
    assert states(supervisor)["slow"] is ChildState.STARTING
    assert second.starts == 0
    release.set()
    await within(opening)
    await running(second)
    assert journal == ["slow is ready", "+second"]
    await supervisor.aclose()


async def test_a_child_that_fails_while_starting_stops_the_others_and_fails_the_supervisor() -> None:
    journal: list[str] = []

    async def bad() -> None:
        raise Boom("no")

    a, b = kids_of(journal, [PERMANENT, PERMANENT], ready=True)
    never = Kid("never", journal)
    children = [a.spec, b.spec, ChildSpec(name="bad", start=bad, ready=asyncio.Event()), never.spec]
    with pytest.raises(ChildError, match="'bad' failed to start: Boom: no") as caught:
        async with Supervisor("s", children=children):
            pytest.fail("the body must not run")
    assert isinstance(caught.value.__cause__, Boom)
    assert journal == ["+a", "+b", "-b", "-a"]


async def test_a_child_that_is_not_ready_in_time_is_stopped_and_has_failed_to_start() -> None:
    cancelled: list[str] = []

    async def stuck() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append("stuck")

    spec = ChildSpec(name="stuck", start=stuck, ready=asyncio.Event(), start_timeout=timedelta(0))
    async with Supervisor("s") as supervisor:
        with pytest.raises(ChildError, match="not ready after 0:00:00"):
            await supervisor.start_child(spec)
        assert supervisor.which_children() == ()
    assert cancelled == ["stuck"]


async def test_a_child_that_ends_normally_before_it_is_ready_has_ended() -> None:
    async def done() -> None:
        return

    async with Supervisor("s") as supervisor:
        await supervisor.start_child(ChildSpec(name="done", start=done, restart=TRANSIENT, ready=asyncio.Event()))
        await settled(supervisor)
        assert states(supervisor) == {"done": ChildState.STOPPED}


async def test_a_restart_that_fails_is_tried_again_and_counted() -> None:
    journal: list[str] = []
    kid = Kid("a", journal, bad_starts=2)
    async with Supervisor("s", children=[kid.spec]) as supervisor:
        await kid.end("raise")
        await settled(supervisor)
        assert journal == ["+a", "-a", "!a", "!a", "+a"]
        assert supervisor.which_children()[0].restarts == 3


async def test_restarts_that_go_on_failing_escalate() -> None:
    journal: list[str] = []
    kid = Kid("a", journal, bad_starts=100)

    async def body() -> None:
        async with Supervisor("s", children=[kid.spec]):
            await kid.end("raise")
            await asyncio.Event().wait()

    with pytest.raises(Escalated) as caught:
        await within(body())
    assert journal == ["+a", "-a", "!a", "!a", "!a"]
    assert isinstance(caught.value.__cause__, ChildError)


@pytest.mark.parametrize(
    ("strategy", "events"),
    [
        (Strategy.REST_FOR_ONE, ["-a", "-c", "-b", "+a", "!b", "+b", "+c"]),
        (Strategy.ONE_FOR_ALL, ["-a", "-c", "-b", "+a", "!b", "-a", "+a", "+b", "+c"]),
    ],
)
async def test_a_group_whose_restart_fails_in_the_middle_is_tried_again_from_there(
    strategy: Strategy, events: list[str]
) -> None:
    journal: list[str] = []
    a, b, c = Kid("a", journal, ready=True), Kid("b", journal, bad_starts=1), Kid("c", journal, ready=True)
    async with Supervisor("s", children=[a.spec, b.spec, c.spec], strategy=strategy) as supervisor:
        journal.clear()
        await a.end("raise")
        await settled(supervisor)
        assert journal == events


async def test_a_child_can_be_terminated_between_two_tries_to_start_it_again() -> None:
    supervisor: Supervisor
    journal: list[str] = []
    stopping: list[asyncio.Task[None]] = []

    class Reluctant(Kid):
        async def run(self) -> None:
            if self.starts == 1:
                stopping.append(asyncio.create_task(supervisor.terminate_child("a")))
                await asyncio.sleep(0)  # the call is in the mailbox before this try has failed
            await super().run()

    kid = Reluctant("a", journal, bad_starts=100)
    async with Supervisor("s", children=[kid.spec]) as supervisor:
        await kid.end("raise")
        await settled(supervisor)
        await within(stopping[0])
        assert states(supervisor) == {"a": ChildState.STOPPED}
        assert kid.starts == 2


# Intensity


@pytest.mark.parametrize("how", ["raise", "return", "driver", "cancel"])
async def test_the_fourth_failure_in_the_period_escalates(how: str) -> None:
    journal: list[str] = []
    kid, other = Kid("a", journal), Kid("b", journal)
    clock = Clock()

    async def body() -> None:
        async with Supervisor("s", children=[other.spec, kid.spec], clock=clock):
            for _ in range(4):
                await kid.end(how)
                clock.now += 5 / 3
            await asyncio.Event().wait()

    with pytest.raises(Escalated, match=r"'s' gave up, more than 3 restarts in 5 s; the last was of 'a'"):
        await within(body())
    assert (kid.starts, other.starts) == (4, 1)
    assert journal[-1] == "-b"


async def test_failures_are_counted_over_all_children() -> None:
    journal: list[str] = []
    kids = kids_of(journal, [PERMANENT] * 4, ready=False)

    async def body() -> None:
        async with Supervisor("s", children=[kid.spec for kid in kids]):
            for kid in kids:
                await kid.end("raise")
            await asyncio.Event().wait()

    with pytest.raises(Escalated):
        await within(body())
    assert [kid.starts for kid in kids] == [2, 2, 2, 1]


async def test_old_failures_are_forgotten() -> None:
    journal: list[str] = []
    kid, clock = Kid("a", journal), Clock()
    async with Supervisor("s", children=[kid.spec], clock=clock) as supervisor:
        for _ in range(20):
            await kid.end("raise")
            await settled(supervisor)
            clock.now += 1.67
    assert kid.starts == 21


async def test_a_failure_of_exactly_the_period_ago_counts() -> None:
    kid, clock = Kid("a", []), Clock()

    async def body() -> None:
        async with Supervisor("s", children=[kid.spec], max_restarts=1, clock=clock) as supervisor:
            await kid.end("raise")
            await settled(supervisor)
            clock.now += 5.0
            await kid.end("raise")
            await asyncio.Event().wait()

    with pytest.raises(Escalated):
        await within(body())


async def test_ends_that_are_not_restarted_do_not_count() -> None:
    async with Supervisor("s", max_restarts=0) as supervisor:
        for restart, how in [(TEMPORARY, "raise"), (TEMPORARY, "return"), (TRANSIENT, "return")]:
            kid = Kid(f"{restart} {how}", [], restart)
            await supervisor.start_child(kid.spec)
            await kid.end(how)
            await settled(supervisor)
        assert states(supervisor) == {"transient return": ChildState.STOPPED}


# Ending


async def test_giving_up_with_a_body_that_was_cancelled_from_outside_too_stays_a_cancellation() -> None:
    kid = Kid("a", [])
    entered = asyncio.Event()

    async def body() -> None:
        async with Supervisor("s", children=[kid.spec], max_restarts=0):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(body())
    await within(entered.wait())
    await kid.end("raise")
    task.cancel()
    await within(asyncio.wait([task]))
    assert task.cancelled()


async def test_an_error_of_the_body_passes_and_the_children_are_stopped() -> None:
    journal: list[str] = []
    kid = Kid("a", journal, ready=True)
    with pytest.raises(Boom, match="body"):
        async with Supervisor("s", children=[kid.spec]):
            raise Boom("body")
    assert journal == ["+a", "-a"]


async def test_closing_is_idempotent_and_concurrent_calls_wait_for_one() -> None:
    journal: list[str] = []
    kids = kids_of(journal, [PERMANENT] * 3, ready=True)
    async with Supervisor("s", children=[kid.spec for kid in kids]) as supervisor:
        journal.clear()
        await within(asyncio.gather(supervisor.aclose(), supervisor.aclose()))
        assert journal == ["-c", "-b", "-a"]
        await supervisor.aclose()
        assert supervisor.children() == []
        with pytest.raises(ChildError, match="does not run"):
            await supervisor.start_child(kids[0].spec)
        with pytest.raises(ChildError, match="closed"):
            supervisor.start("late", kids[0].run)


async def test_closing_what_was_never_opened_does_nothing() -> None:
    await Supervisor("s").aclose()


async def test_calls_that_wait_when_the_supervisor_ends_are_refused() -> None:
    entered = asyncio.Event()

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            entered.set()
            await asyncio.sleep(0)

    async with Supervisor("s", children=[ChildSpec(name="a", start=stubborn)]) as supervisor:
        await settled(supervisor)
        closing = asyncio.create_task(supervisor.aclose())
        await within(entered.wait())
        with pytest.raises(ChildError, match="ended before it came to this"):
            await supervisor.terminate_child("a")
        await within(closing)


async def test_a_child_that_does_not_stop_is_reported_and_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    let_go = asyncio.Event()
    journal: list[str] = []

    async def stubborn() -> None:
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                journal.append("ignored")

    first = Kid("first", journal, ready=True)
    spec = ChildSpec(name="stubborn", start=stubborn, stop_timeout=timedelta(milliseconds=1))
    async with Supervisor("s", children=[first.spec, spec]) as supervisor:
        await settled(supervisor)
    assert journal == ["+first", "ignored", "-first"]
    (critical,) = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert critical.getMessage().startswith("s/stubborn did not end within 0:00:00.001000 of being cancelled")
    (task,) = [task for task in asyncio.all_tasks() if task.get_name() == "s/stubborn"]
    let_go.set()
    await within(asyncio.wait([task]))
    assert "s/stubborn ended at last" in caplog.text


async def test_an_error_while_stopping_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def bad() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise Boom("last words")

    async with Supervisor("s", children=[ChildSpec(name="bad", start=bad)]) as supervisor:
        await settled(supervisor)
        await supervisor.terminate_child("bad")
        assert supervisor.which_children()[0].error == "Boom: last words"
    assert "s/bad failed while it was stopped: Boom: last words" in caplog.text


async def test_a_second_cancellation_of_a_running_supervisor_cancels_all_children_at_once() -> None:
    cancelled: list[str] = []
    stopping, all_stopping, let_go = asyncio.Event(), asyncio.Event(), asyncio.Event()

    def slow(name: str) -> ChildSpec:
        async def run() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.append(name)
                stopping.set()
                if len(cancelled) == 3:
                    all_stopping.set()
                await let_go.wait()

        return ChildSpec(name=name, start=run)

    supervisor = Supervisor("s", children=[slow("a"), slow("b"), slow("c")])
    task = asyncio.create_task(supervisor.run())
    await within(supervisor.ready.wait())
    await settled(supervisor)
    task.cancel()
    await within(stopping.wait())
    assert cancelled == ["c"]
    task.cancel()
    try:
        await within(asyncio.wait([task]))
        await within(all_stopping.wait())
    finally:
        let_go.set()


# Dynamic children


async def test_dynamic_children_are_the_newest_and_restarted_like_others() -> None:
    journal: list[str] = []
    a, b = kids_of(journal, [PERMANENT, PERMANENT], ready=True)
    async with Supervisor("s", children=[a.spec], strategy=Strategy.REST_FOR_ONE) as supervisor:
        await supervisor.start_child(b.spec)
        with pytest.raises(ChildError, match=r"has a child 'b' already \(running\)"):
            await supervisor.start_child(b.spec)
        await a.end("raise")
        await settled(supervisor)
    assert journal == ["+a", "+b", "-a", "-b", "+a", "+b", "-b", "-a"]


async def test_a_terminated_child_stays_stopped_until_it_is_restarted_or_deleted() -> None:
    journal: list[str] = []
    kid = Kid("a", journal, ready=True)
    async with Supervisor("s", children=[kid.spec]) as supervisor:
        for call in (supervisor.delete_child, supervisor.restart_child):
            with pytest.raises(ChildError, match="'a' is running; terminate it first"):
                await call("a")
        await supervisor.terminate_child("a")
        await supervisor.terminate_child("a")
        assert journal == ["+a", "-a"]
        assert states(supervisor) == {"a": ChildState.STOPPED}
        assert supervisor.children() == []
        with pytest.raises(ChildError, match=r"already \(stopped\)"):
            await supervisor.start_child(kid.spec)
        await supervisor.restart_child("a")
        assert journal == ["+a", "-a", "+a"]
        await supervisor.terminate_child("a")
        await supervisor.delete_child("a")
        assert supervisor.which_children() == ()
        with pytest.raises(ChildError, match="has no child 'a'; its children: none"):
            await supervisor.restart_child("a")


async def test_a_child_that_does_not_start_again_on_request_stays_stopped() -> None:
    kid = Kid("a", [], bad_starts=1)
    async with Supervisor("s", children=[kid.spec], max_restarts=0) as supervisor:
        await supervisor.terminate_child("a")
        with pytest.raises(ChildError, match="a cannot start"):
            await supervisor.restart_child("a")
        assert states(supervisor) == {"a": ChildState.STOPPED}
        await supervisor.restart_child("a")
        assert states(supervisor) == {"a": ChildState.RUNNING}


async def test_a_temporary_child_is_forgotten_when_it_is_terminated() -> None:
    kid = Kid("a", [], TEMPORARY, ready=True)
    async with Supervisor("s", children=[kid.spec]) as supervisor:
        await supervisor.terminate_child("a")
        assert supervisor.which_children() == ()


async def test_a_child_may_terminate_itself_and_close_its_supervisor() -> None:
    ended: list[str] = []

    def calling(name: str, call: Callable[[], Awaitable[None]]) -> ChildSpec:
        async def run() -> None:
            try:
                await call()
            finally:
                ended.append(name)

        return ChildSpec(name=name, start=run)

    async with Supervisor("s") as supervisor:
        await supervisor.start_child(calling("a", lambda: supervisor.terminate_child("a")))
        await settled(supervisor)
        assert states(supervisor) == {"a": ChildState.STOPPED}
        await supervisor.start_child(calling("b", supervisor.aclose))
        await within(supervisor.aclose())
    assert ended == ["a", "b"]


async def test_a_caller_that_is_cancelled_leaves_the_supervisor_as_it_is() -> None:
    first, second = Kid("a", [], ready=True), Kid("b", [], ready=True)
    async with Supervisor("s") as supervisor:
        calls = [asyncio.create_task(supervisor.start_child(kid.spec)) for kid in (first, second)]
        await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await within(asyncio.wait(calls))
        await settled(supervisor)
        assert all(call.cancelled() for call in calls)
        assert supervisor.children() == ["a", "b"]


# What there is to see


async def test_children_show_where_they_stand() -> None:
    a, b = Kid("a", [], ready=True), Kid("b", [], TRANSIENT, ready=True)
    async with Supervisor("s", children=[a.spec, b.spec]) as supervisor:
        await a.end("raise")
        await b.end("return")
        await settled(supervisor)
        assert supervisor.which_children() == (
            ChildInfo(
                name="a",
                restart=PERMANENT,
                state=ChildState.RUNNING,
                restarts=1,
                task="s/a",
                error="Boom: a failed",
            ),
            ChildInfo(name="b", restart=TRANSIENT, state=ChildState.STOPPED, restarts=0, task=None, error=None),
        )


@pytest.mark.parametrize(
    ("strategy", "restart", "how", "report"),
    [
        (
            Strategy.ONE_FOR_ALL,
            PERMANENT,
            "raise",
            "s/a failed (Boom: a failed); one_for_all: starting it again with b, restart 1 of at most 3 in 5 s",
        ),
        (
            Strategy.ONE_FOR_ONE,
            PERMANENT,
            "return",
            "s/a ended; one_for_one: starting it again, restart 1 of at most 3 in 5 s",
        ),
        (
            Strategy.ONE_FOR_ONE,
            TRANSIENT,
            "driver",
            "s/a failed (CancelledError); one_for_one: starting it again, restart 1 of at most 3 in 5 s",
        ),
        (
            Strategy.ONE_FOR_ONE,
            TEMPORARY,
            "raise",
            "s/a failed (Boom: a failed); it is temporary: it is not started again",
        ),
    ],
)
async def test_a_crash_report_says_who_why_and_what_is_done(
    strategy: Strategy, restart: Restart, how: str, report: str, caplog: pytest.LogCaptureFixture
) -> None:
    kid, other = Kid("a", [], restart, ready=True), Kid("b", [], ready=True)
    async with Supervisor("s", children=[kid.spec, other.spec], strategy=strategy) as supervisor:
        await kid.end(how)
        await settled(supervisor)
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.ERROR, report)
    if how != "return":
        assert record.exc_info is not None
        assert record.exc_info[2] is not None
        assert "test_supervision.py" in caplog.text  # the traceback shows the child's own line


def test_specifications_that_cannot_work_are_refused() -> None:
    async def run() -> None: ...

    with pytest.raises(ConfigError, match="no name"):
        ChildSpec(name="", start=run)
    with pytest.raises(ConfigError, match="stop_timeout of child 'a'"):
        ChildSpec(name="a", start=run, stop_timeout=timedelta(seconds=-1))
    with pytest.raises(ConfigError, match="several children named a"):
        Supervisor("s", children=[ChildSpec(name="a", start=run)] * 2)
    with pytest.raises(ConfigError, match="max_restarts is -1"):
        Supervisor("s", max_restarts=-1)


# Owners that escalate themselves


async def test_started_children_are_transient_and_forgotten() -> None:
    journal: list[str] = []
    kid = Kid("a", journal)
    supervisor = Supervisor("s", Escalations())
    lifetime = supervisor.start("a", kid.run)
    assert supervisor.children() == ["a"]
    with pytest.raises(ChildError, match="already"):
        supervisor.start("a", kid.run)
    for how in ("raise", "driver"):
        await kid.end(how)
        await within(kid.running.wait())
        assert not lifetime.done()
    await kid.end("return")
    await within(lifetime)
    assert supervisor.children() == []
    again = supervisor.start("a", kid.run)
    await within(kid.running.wait())
    await supervisor.aclose()
    assert again.done()
    assert kid.starts == 4


@pytest.mark.parametrize("begun", [True, False])
async def test_cancelling_the_task_of_a_started_child_stops_it(begun: bool) -> None:
    kid = Kid("a", [])
    escalations = Escalations()
    supervisor = Supervisor("s", escalations)
    lifetime = supervisor.start("a", kid.run)
    if begun:
        await within(kid.running.wait())
    lifetime.cancel()
    await within(asyncio.wait([lifetime]))
    assert lifetime.cancelled()
    await settled(supervisor)
    assert supervisor.children() == []
    assert not kid.running.is_set()
    supervisor.start("a", kid.run)
    await within(kid.running.wait())
    await supervisor.aclose()
    assert escalations.errors == []


async def test_an_owner_that_escalates_is_told_once_and_stops_the_others_itself() -> None:
    escalations, journal = Escalations(), list[str]()
    supervisor = Supervisor("s", escalations)
    failing, late, healthy = kids_of(journal, [PERMANENT] * 3, ready=False)
    tasks = [supervisor.start(kid.name, kid.run) for kid in (failing, late, healthy)]
    for _ in range(4):
        await failing.end("raise")
        await settled(supervisor)
    await within(escalations.event.wait())
    await late.end("raise")  # it is too late to start anything again
    await within(asyncio.wait(tasks[:2]))
    assert [str(error) for error in escalations.errors] == ["a failed"]
    assert (failing.starts, late.starts, healthy.starts) == (4, 1, 1)
    assert supervisor.children() == ["c"]
    assert healthy.running.is_set()
    await supervisor.aclose()
    assert escalations.errors == escalations.errors[:1]
    assert journal[-1] == "-c"


async def test_an_owner_that_cannot_take_an_escalation_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    told: list[BaseException] = []

    def escalate(error: BaseException) -> None:
        told.append(error)
        raise RuntimeError("no")

    kid = Kid("a", [])
    supervisor = Supervisor("s", escalate, max_restarts=0)
    lifetime = supervisor.start("a", kid.run)
    await kid.end("raise")
    await within(asyncio.wait([lifetime]))
    await supervisor.aclose()
    assert len(told) == 1
    assert "RuntimeError: no" in caplog.text


async def test_closing_stops_started_children_in_reverse_and_waits() -> None:
    journal: list[str] = []
    supervisor = Supervisor("s", Escalations())
    kids = kids_of(journal, [PERMANENT] * 3, ready=False)
    for kid in kids:
        supervisor.start(kid.name, kid.run)
    await running(*kids)
    await supervisor.aclose()
    assert journal == ["+a", "+b", "+c", "-c", "-b", "-a"]
    await supervisor.aclose()


async def test_a_supervisor_that_nobody_listens_to_says_so(caplog: pytest.LogCaptureFixture) -> None:
    supervisor = Supervisor("s", max_restarts=0)
    kid = Kid("a", [])
    lifetime = supervisor.start("a", kid.run)
    await kid.end("raise")
    await within(asyncio.wait([lifetime]))
    await supervisor.aclose()
    assert "supervisor s ended; nobody is there to act on it" in caplog.text


def test_the_end_of_the_event_loop_restarts_nothing() -> None:
    kid = Kid("a", [])

    async def main() -> None:
        supervisor = Supervisor("s", Escalations())
        supervisor.start("a", kid.run)
        await kid.running.wait()

    asyncio.run(main())
    assert kid.starts == 1
