"""Brokers for the tests, a leak check round each test, and counts for each broker at the end."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from signalbus.testing.rabbitmq import NodeProcess, PrivateNode, find_server
from tests.brokers_available import LocalNode, RabbitMQ, local_node, rabbitmq_for_tests
from tests.disks import mounted
from tests.leaks import LeakCheck

# Before anything imports them: helpers whose asserts should explain themselves.
pytest.register_assert_rewrite(
    "tests.brokers.contract",
    "tests.brokers.contract_ledger",
    "tests.brokers.contract_liveness",
    "tests.brokers.contract_requests",
    "tests.brokers.world",
    "tests.faults.history",
    "tests.support",
)

NO_RABBITMQ = "no RabbitMQ: install rabbitmq-server, start Docker, or set SIGNALBUS_TEST_AMQP_URL"
BROKERS = ("sqlite", "rabbitmq-quorum", "rabbitmq-classic")
OUTCOMES = ("passed", "failed", "error", "skipped", "xfailed")
_PARAMETER = re.compile(r"\[(?:.*-)?(" + "|".join(BROKERS) + r")(?:-.*)?\]")

_leaks = LeakCheck()


def _without_rabbitmq(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


# Brokers


@contextmanager
def _untimed() -> Iterator[None]:
    """Stop the clock of pytest-timeout: a node's start has limits of its own, and is no part of the test it is for.

    Two tries of 90 s are more than a test may take, so a node that was slow at first failed the test that came first.
    """
    left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left)


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQ | None]:
    """The session's RabbitMQ, None when there is none. Tests must leave it as it is: see `fault_node`."""
    with _leaks.allowed(), _untimed():
        context = rabbitmq_for_tests()
        broker = context.__enter__()
    try:
        yield broker
    finally:
        context.__exit__(None, None, None)


@pytest.fixture
def amqp_url(rabbitmq: RabbitMQ | None) -> Iterator[str]:
    """The URL of a virtual host that only this test uses."""
    if rabbitmq is None:
        _without_rabbitmq(NO_RABBITMQ)
        return
    with _leaks.allowed():
        url = rabbitmq.make_vhost()
    yield url
    with _leaks.allowed():
        rabbitmq.drop_vhost(url)


@pytest.fixture
def rabbitmq_node(rabbitmq: RabbitMQ | None) -> PrivateNode:
    """The node behind `amqp_url`, for questions (`eval`, `ctl`) and for faults confined to one virtual host."""
    if not isinstance(rabbitmq, LocalNode):
        _without_rabbitmq("needs a local rabbitmq-server, not only the address of one")
        raise AssertionError
    with _leaks.allowed():
        rabbitmq.process.eval("ok")  # opens the console
    return PrivateNode(process=rabbitmq.process)


@pytest.fixture(scope="session")
def _fault_process() -> Iterator[NodeProcess | None]:
    if find_server() is None:
        yield None
        return
    with _leaks.allowed(), _untimed():
        context = local_node()
        process = context.__enter__()
    try:
        yield process
    finally:
        context.__exit__(None, None, None)


@pytest.fixture
def fault_node(_fault_process: NodeProcess | None) -> Iterator[PrivateNode]:
    """A node to kill, stop, suspend or starve: running and without alarms at the start of each test."""
    if _fault_process is None:
        _without_rabbitmq("needs a local rabbitmq-server")
        return
    with _leaks.allowed():
        _fault_process.resume()
        if _fault_process.pid is None:
            _fault_process.start()
        _fault_process.wait_ready()
        _fault_process.eval("ok")
    node = PrivateNode(process=_fault_process)
    yield node
    with _leaks.allowed():
        _fault_process.resume()
        if _fault_process.pid is not None:
            # Alarms would block the next test's publishers.
            _fault_process.eval(
                "vm_memory_monitor:set_vm_memory_high_watermark({absolute, 2000000000}), "
                "rabbit_disk_monitor:set_disk_free_limit(50000000)"
            )


# Disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system of four megabytes."""
    with mounted(tmp_path / "small", "4m") as directory:
        yield directory


# Leaks


@pytest.fixture(autouse=True)
def _no_resource_leaks() -> Iterator[None]:
    _leaks.start()
    yield
    if leaked := _leaks.leaked():
        pytest.fail("the test left behind: " + ", ".join(leaked), pytrace=False)


@pytest.fixture(autouse=True)
async def _no_task_leaks(_no_resource_leaks: None) -> AsyncIterator[None]:
    # Set up first, so torn down after the test's own async fixtures have closed what they opened.
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    if left:
        _, left = await asyncio.wait(left, timeout=1.0)
    if left:
        names = ", ".join(f"{task.get_name()} {task.get_coro()!r}" for task in left)
        pytest.fail(f"the test left tasks behind: {names}", pytrace=False)


# Summary


def _broker_of(report: pytest.TestReport) -> str | None:
    if found := _PARAMETER.search(report.nodeid):
        return found[1]
    if "amqp_url" in report.keywords or "rabbitmq" in report.keywords:
        return "rabbitmq, other"
    return None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts: Counter[tuple[str, str]] = Counter()
    missing = 0
    for outcome in OUTCOMES:
        for report in terminalreporter.stats.get(outcome, []):
            if not isinstance(report, pytest.TestReport):
                continue  # a module that could not be collected
            broker = _broker_of(report)
            if broker is not None:
                counts[broker, outcome] += 1
            if outcome == "skipped" and NO_RABBITMQ in str(report.longrepr):
                missing += 1
    if counts:
        terminalreporter.section("tests by broker")
    for broker in dict.fromkeys((*BROKERS, *(name for name, _ in counts))):
        line = ", ".join(f"{counts[broker, name]} {name}" for name in OUTCOMES if counts[broker, name])
        if counts:
            terminalreporter.line(f"{broker + ':':<18} {line or 'none'}")
    if missing:
        terminalreporter.line(f"!!! {missing} TESTS DID NOT RUN: {NO_RABBITMQ}", red=True, bold=True)
