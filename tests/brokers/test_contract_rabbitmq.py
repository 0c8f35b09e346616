"""The contract suite on RabbitMQ, with both types of queues, and with every frame left to the driver."""

from __future__ import annotations

import pytest

from tests.brokers import contract
from tests.brokers.suite import NAMES, SUITE
from tests.brokers.world import World

pytestmark = pytest.mark.rabbitmq
KINDS = ["rabbitmq-quorum", "rabbitmq-classic", "rabbitmq-quorum-nolane"]


@pytest.mark.parametrize("behaviour", SUITE, ids=NAMES)
@pytest.mark.parametrize("broker", KINDS)
async def test_contract(behaviour: contract.Behaviour, broker: str, rabbitmq_world: World) -> None:
    await behaviour(rabbitmq_world)
