"""topology, doctor and version."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import pytest

from signalbus import Bus
from tests.cli.program import Json, environment, signalbus


@pytest.fixture
async def url(tmp_path: Path) -> str:
    """A store with one subscription that nobody serves, and one signal in it."""
    url = f"sqlite:///{tmp_path / 'looking.db'}"

    async def never(data: dict[str, int]) -> None:
        raise AssertionError

    bus = Bus(url)
    async with bus:
        await (await bus.subscribe("order.*", handler=never, name="billing")).cancel()
        await bus.publish("order.placed", {"n": 1})
    return url


def checks(result: Json) -> list[dict[str, str]]:
    return cast("list[dict[str, str]]", result["checks"])


def test_topology_lists_subscriptions(url: str, tmp_path: Path) -> None:
    fields = signalbus("topology", "--json", cwd=tmp_path, env=environment(url)).json()
    [subscription] = cast("list[Json]", fields["subscriptions"])
    assert fields["schema_version"] == 1
    assert subscription["name"] == "billing"
    assert subscription["patterns"] == ["order.*"]
    assert subscription["ready"] == 1
    assert subscription["consumers"] == 0


def test_without_a_terminal_nothing_is_coloured_or_cut(url: str, tmp_path: Path) -> None:
    out = signalbus("topology", cwd=tmp_path, env=environment(url)).out
    assert "\x1b" not in out
    assert "billing" in out
    assert "✗ none" in out


def test_colour_can_be_forced_and_forbidden(url: str, tmp_path: Path) -> None:
    forced = environment(url, FORCE_COLOR="1", TERM="xterm-256color")
    assert "\x1b" in signalbus("topology", cwd=tmp_path, env=forced).out
    assert "\x1b[3" not in signalbus("topology", "--no-color", cwd=tmp_path, env=forced).out


def test_topology_makes_no_file(tmp_path: Path) -> None:
    assert "does not exist" in signalbus("topology", cwd=tmp_path, check=5).err
    assert list(tmp_path.iterdir()) == []


async def test_topology_of_rabbitmq_has_declarations(amqp_url: str, tmp_path: Path) -> None:
    async def never(data: dict[str, int]) -> None:
        raise AssertionError

    bus = Bus(amqp_url)
    async with bus:
        await (await bus.subscribe("order.*", handler=never, name="billing")).cancel()
    fields = signalbus("topology", "--json", cwd=tmp_path, env=environment(amqp_url)).json()
    declarations = cast("list[Json]", fields["declarations"])
    assert {declaration["kind"] for declaration in declarations} == {"exchange", "queue", "binding"}
    assert any("billing" in str(declaration.get("name")) for declaration in declarations)
    assert any(declaration.get("key") == "order.*" for declaration in declarations)


def test_doctor_finds_what_waits_for_nobody(url: str, tmp_path: Path) -> None:
    result = signalbus("doctor", "--json", cwd=tmp_path, env=environment(url), check=6).json()
    [queues] = [check for check in checks(result) if check["check"] == "queues"]
    assert queues["state"] == "warning"
    assert "billing (1 waiting)" in queues["found"]
    assert queues["advice"]


def test_doctor_is_content_with_nothing_and_changes_nothing(tmp_path: Path) -> None:
    result = signalbus("doctor", cwd=tmp_path)
    assert "✓ ok" in result.out
    assert "does not exist yet" in result.out
    assert list(tmp_path.iterdir()) == []


def test_doctor_says_that_the_broker_is_away(tmp_path: Path) -> None:
    result = signalbus("doctor", "--url", "amqp://127.0.0.1:1/", "--timeout", "1", cwd=tmp_path, check=3)
    assert "✗ bad" in result.out
    assert "is RabbitMQ running" in result.out


def test_doctor_names_a_wrong_url(tmp_path: Path) -> None:
    assert "unknown scheme" in signalbus("doctor", "--url", "ftp://x", cwd=tmp_path, check=2).out


def test_doctor_names_a_missing_directory(tmp_path: Path) -> None:
    assert "mkdir" in signalbus("doctor", "--url", "sqlite:///no/such.db", cwd=tmp_path, check=1).out


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_doctor_names_a_missing_right(tmp_path: Path) -> None:
    place = tmp_path / "closed"
    place.mkdir(mode=0o500)
    signalbus("doctor", "--url", f"sqlite:///{place}/x.db", cwd=tmp_path, check=4)
