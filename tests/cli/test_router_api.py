"""Commands that ask a router: its page and API, for RabbitMQ and for the embedded broker's file."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import cast

import pytest

from signalbus import Bus, RetryPolicy
from signalbus.cli.daemon import _is_at
from signalbus.config import RabbitUrl, parse_url
from tests.cli.program import Json, Running, environment, running, signalbus
from tests.support import eventually_sync

APP = """
from signalbus import Bus
bus = Bus(name="shop")

@bus.subscribe("order.*", name="billing")
async def bill(data: dict) -> None:
    pass
"""
TOKEN = "a-token-that-nobody-guesses"


async def _bury(url: str, count: int) -> list[str]:
    """Make dead letters, and return the ids of their signals."""
    bus = Bus(url, name="shop")

    async def bill(data: dict[str, int]) -> None:
        raise KeyError(data["n"])

    bus.subscribe("order.*", handler=bill, name="billing", retry=RetryPolicy(max_attempts=1))
    async with bus:
        return [(await bus.publish("order.placed", {"n": n}, until="acked")).id for n in range(count)]


def url_of(router: Running) -> str:
    """Return where a router says that it is."""
    router.wait_err("look at")
    found = re.search(r"http://127\.0\.0\.1:\d+", router.err)
    assert found is not None
    return found[0]


def status_of(url: str, token: str | None = None) -> int:
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.rabbitmq
async def test_dead_letters_and_traces_of_rabbitmq_are_asked_of_its_router(amqp_url: str, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APP)
    env = environment(amqp_url)
    signals = await _bury(amqp_url, 3)
    with running("router", "--store", "ledger.db", "--listen", "127.0.0.1:0", cwd=tmp_path, env=env) as router:
        place = url_of(router)
        asking = environment(amqp_url, SIGNALBUS_ROUTER=place)

        def dead() -> list[Json]:
            result = signalbus("dead", "list", "--each", "--all", "--json", cwd=tmp_path, env=asking)
            return cast("list[Json]", result.json()["letters"])

        eventually_sync(lambda: len(dead()) == 3, 30, message="the router to take them in")
        assert {letter["signal"] for letter in dead()} == set(signals)
        assert "KeyError" in signalbus("dead", "show", signals[0], cwd=tmp_path, env=asking).out
        with running("run", "shop:bus", cwd=tmp_path, env=env, name="service") as service:
            service.wait_err("serving")
            told = signalbus("dead", "replay", "--all", "--yes", "--json", cwd=tmp_path, env=asking).json()
        assert (told["total"], told["acked"]) == (3, 3)
        assert {letter["state"] for letter in dead()} == {"acked"}

        def replayed() -> bool:
            shown = signalbus("trace", "show", signals[0], cwd=tmp_path, env=asking, check=None)
            return "replayed" in shown.out and "1 acked" in shown.out

        eventually_sync(replayed, 30, message="the trace of a replayed signal")
        listed = signalbus("trace", "list", "--failed", "--json", cwd=tmp_path, env=asking).json()
        assert {cast("Json", each)["id"] for each in cast("list[object]", listed["signals"])} == set(signals)
        for path in ("/", "/dead-letters", "/subscribers", "/healthz", "/readyz", "/metrics", "/api/v1/openapi.json"):
            assert status_of(place + path) == 200, path


async def test_a_router_serves_the_file_of_the_embedded_broker_as_commands_read_it(tmp_path: Path) -> None:
    signals = await _bury(f"sqlite:///{tmp_path / 'signalbus.db'}", 2)
    local = signalbus("trace", "show", signals[0], "--json", cwd=tmp_path).out
    with running("router", "--listen", "127.0.0.1:0", cwd=tmp_path) as router:
        asking = environment(SIGNALBUS_ROUTER=url_of(router))
        assert signalbus("trace", "show", signals[0], "--json", cwd=tmp_path, env=asking).out == local
        remote = signalbus("dead", "list", "--json", cwd=tmp_path, env=asking).out
        assert remote == signalbus("dead", "list", "--json", cwd=tmp_path).out
        assert (
            "discarded 2 dead letters" in signalbus("dead", "discard", "--all", "--yes", cwd=tmp_path, env=asking).out
        )
        assert "signalbus-cli/" in signalbus("dead", "audit", cwd=tmp_path).out


async def test_a_token_is_wanted_where_one_is_set(tmp_path: Path) -> None:
    await _bury(f"sqlite:///{tmp_path / 'signalbus.db'}", 1)
    env = environment(SIGNALBUS_TOKEN=TOKEN)
    with running("router", "--listen", "127.0.0.1:0", cwd=tmp_path, env=env) as router:
        place = url_of(router)
        assert status_of(f"{place}/api/v1/about") == 401
        assert status_of(f"{place}/api/v1/about", TOKEN) == 200
        result = signalbus("dead", "list", "--router", place, cwd=tmp_path, check=4)
        assert "SIGNALBUS_TOKEN" in result.err
        assert TOKEN not in router.err


def test_other_machines_are_let_in_with_a_token_only(tmp_path: Path) -> None:
    result = signalbus(
        "router", "--store", "ledger.db", "--url", "amqp://localhost/", "--listen", "0.0.0.0:0", cwd=tmp_path, check=2
    )
    assert "SIGNALBUS_TOKEN" in result.err


def test_a_router_on_this_machine_is_asked_only_about_its_own_broker() -> None:
    def at(url: str, ours: str) -> bool:
        place = parse_url(ours)
        assert isinstance(place, RabbitUrl)
        return _is_at(url, place)

    assert at("amqp://ann:***@rabbit/shop", "amqp://bob:secret@rabbit:5672/shop")
    assert at("amqp://rabbit1,rabbit2/", "amqp://rabbit2/")
    assert not at("amqp://rabbit/shop", "amqp://rabbit/other")
    assert not at("amqp://rabbit/", "amqp://other/")
    assert not at("amqp://rabbit/?prefix=a", "amqp://rabbit/")
    assert not at("sqlite:///signalbus.db", "amqp://rabbit/")
