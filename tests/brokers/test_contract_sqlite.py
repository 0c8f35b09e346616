"""The contract suite on the embedded broker."""

from __future__ import annotations

from pathlib import Path

import pytest

from signalbus import ConfigError, SignalBusError, StorageError
from tests.brokers import contract
from tests.brokers.suite import NAMES, SUITE
from tests.brokers.world import World


@pytest.mark.parametrize("behaviour", SUITE, ids=NAMES)
@pytest.mark.parametrize("broker", ["sqlite"])
async def test_contract(behaviour: contract.Behaviour, broker: str, sqlite_world: World) -> None:
    await behaviour(sqlite_world)


@pytest.mark.parametrize("broker", ["sqlite"])
async def test_files_that_cannot_be_one_are_typed_errors_that_say_what_to_do(broker: str, tmp_path: Path) -> None:
    (tmp_path / "directory.db").mkdir()
    (tmp_path / "text.db").write_text("this is no database, but long enough to have a header of one" * 100)
    cases: list[tuple[str, type[SignalBusError]]] = [
        (f"{tmp_path}/no/such/directory/bus.db", ConfigError),
        (f"{tmp_path}/directory.db", ConfigError),
        (f"{tmp_path}/text.db", ConfigError),
        ("/proc/bus.db", SignalBusError),
    ]
    for path, kind in cases:
        error = await contract.refused_in_time(contract.unreachable(f"sqlite:///{path}"), kind)
        assert isinstance(error, StorageError | ConfigError)
        assert path.split("/")[-1] in str(error) or "no/such/directory" in str(error)
    assert (tmp_path / "text.db").read_text().startswith("this is no database")
