"""Worlds for the contract suite: one empty broker for each test."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

# Before they are imported, so that their assertions say what they compared.
from tests.brokers.world import World
from tests.brokers_available import LocalNode, RabbitMQ

# Short waits, so that a fault is over soon; a heartbeat that a busy machine can keep.
RABBITMQ_OPTIONS = "backoff_cap=0.5&silent_after=3"


# `SIGNALBUS_TEST_LANE=off make test-faults` runs the suites on the driver alone.
LANE = os.environ.get("SIGNALBUS_TEST_LANE", "on")


def query_of(broker: str) -> str:
    """Return the query of the URL for a broker, whose name says the type of queue, and whether to do without a lane."""
    queue_type, _, without_lane = broker.removeprefix("rabbitmq-").partition("-")
    return f"queue_type={queue_type}&lane={'off' if without_lane else LANE}&{RABBITMQ_OPTIONS}"


@pytest.fixture
def rabbitmq_options(broker: str) -> str:
    """Query of the URL for the `broker` parameter."""
    return query_of(broker)


@pytest.fixture
async def sqlite_world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(f"sqlite:///{tmp_path}/bus.db?min_free_bytes=0", tmp_path)
    yield world
    await world.aclose()


@pytest.fixture
async def rabbitmq_world(
    broker: str, amqp_url: str, rabbitmq: RabbitMQ | None, rabbitmq_options: str, tmp_path: Path
) -> AsyncIterator[World]:
    """A world on the shared node; with classic queues its user has no more rights than are needed."""
    if broker == "rabbitmq-classic" and isinstance(rabbitmq, LocalNode):
        await asyncio.to_thread(rabbitmq.narrow, amqp_url)
    world = World(f"{amqp_url}?{rabbitmq_options}", tmp_path)
    yield world
    await world.aclose()
