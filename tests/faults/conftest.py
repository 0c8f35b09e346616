"""Worlds for the fault rows: the brokers of the contract suite, and a node that may be harmed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from signalbus.testing.rabbitmq import PrivateNode
from tests.brokers.conftest import query_of
from tests.brokers.world import World

BROKERS = ["sqlite", "rabbitmq-quorum", "rabbitmq-classic"]


@pytest.fixture
async def world(broker: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """A world of the kind that the `broker` parameter names; on RabbitMQ its node may be killed."""
    if broker == "sqlite":
        world = World(f"sqlite:///{tmp_path}/bus.db?min_free_bytes=0", tmp_path)
    else:
        node: PrivateNode = request.getfixturevalue("fault_node")
        url = await node.vhost()
        world = World(f"{url}?{query_of(broker)}&heartbeat=2", tmp_path, node)
    yield world
    await world.aclose()
