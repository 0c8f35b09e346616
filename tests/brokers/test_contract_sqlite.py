"""The contract suite on the embedded broker."""

from __future__ import annotations

import pytest

from tests.brokers import contract
from tests.brokers.world import World


@pytest.mark.parametrize("behaviour", contract.CONTRACT, ids=[function.__name__ for function in contract.CONTRACT])
@pytest.mark.parametrize("broker", ["sqlite"])
async def test_contract(behaviour: contract.Behaviour, broker: str, sqlite_world: World) -> None:
    await behaviour(sqlite_world)
