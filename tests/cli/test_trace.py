"""trace list, show, follow and explain: what became of signals, on the embedded broker and from a router's store."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import cast

import pytest

from signalbus import Bus, Reject
from signalbus.cli.failures import CommandError
from signalbus.cli.moments import read_moment
from signalbus.explanation import mismatch
from tests.cli.program import Json, environment, running, signalbus
from tests.support import eventually_sync

APP = """
from signalbus import Bus, Reject
bus = Bus(name="shop")

@bus.subscribe("order.*", name="billing")
async def bill(data: dict) -> None:
    if data.get("bad"):
        raise Reject("no such customer")
    await bus.publish("invoice.created", data, unroutable="ignore")
"""


async def make_history(url: str) -> list[str]:
    """Publish an order that goes well, one that is rejected, and one that waits; return their ids."""
    bus = Bus(url, name="shop")

    async def bill(data: dict[str, object]) -> None:
        if data.get("bad"):
            raise Reject("no such customer")
        await bus.publish("invoice.created", data, unroutable="ignore")

    bus.subscribe("order.*", handler=bill, name="billing")
    async with bus:
        receipts = [await bus.publish("order.placed", data, until="acked") for data in ({"n": 1}, {"bad": 1})]
        await bus.subscriptions()[0].pause()
        receipts.append(await bus.publish("order.waits", {"n": 3}))
    return [receipt.id for receipt in receipts]


@pytest.fixture
async def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("SIGNALBUS_LEDGER_PAYLOAD", "truncated")
    return await make_history(f"sqlite:///{tmp_path / 'signalbus.db'}")


def listed(tmp_path: Path, *words: str) -> list[Json]:
    return cast("list[Json]", signalbus("trace", "list", "--json", *words, cwd=tmp_path).json()["signals"])


def ids(tmp_path: Path, *words: str) -> list[str]:
    return [str(each["id"]) for each in listed(tmp_path, *words)]


def test_signals_are_listed_newest_first_and_narrowed_down(history: list[str], tmp_path: Path) -> None:
    good, bad, waits = history
    everything = listed(tmp_path)
    assert [each["type"] for each in everything] == ["order.waits", "order.placed", "invoice.created", "order.placed"]
    assert [each["summary"] for each in everything] == ["1 outstanding", "1 dead", "1 unroutable", "1 acked"]
    assert ids(tmp_path, "order.placed") == [bad, good]
    assert ids(tmp_path, "order.*", "--failed") == [bad]
    assert ids(tmp_path, "--state", "dead", "--state", "waiting") == [waits, bad]
    assert ids(tmp_path, "--subscription", "billing", "--limit", "1") == [waits]
    assert ids(tmp_path, "--where", "data.bad=1") == [bad]
    assert ids(tmp_path, "--until", "1h") == []
    assert len(ids(tmp_path, "--since", "1h")) == 4
    out = signalbus("trace", "list", cwd=tmp_path).out
    assert "1 outstanding" in out
    assert "✗" in next(line for line in out.splitlines() if bad in line)


def test_one_signal_is_shown_in_every_format(history: list[str], tmp_path: Path) -> None:
    good, bad, waits = history
    tree = signalbus("trace", "show", good, cwd=tmp_path).out
    assert "billing  ✓ acked" in tree
    assert "invoice.created" in tree
    assert "no such customer" in signalbus("trace", "show", bad, cwd=tmp_path).out
    assert "no subscriber is connected" in signalbus("trace", "show", waits, cwd=tmp_path).out
    assert "█" in signalbus("trace", "show", good, "--format", "waterfall", cwd=tmp_path).out
    assert "sequenceDiagram" in signalbus("trace", "show", good, "--format", "sequence", cwd=tmp_path).out
    assert "resourceSpans" in signalbus("trace", "show", good, "--format", "otlp", cwd=tmp_path).json()
    shown = signalbus("trace", "show", good, "--json", cwd=tmp_path).json()
    assert cast("Json", shown["signal"])["data"] == {"n": 1}


def test_ids_may_be_shortened_and_ambiguous_ones_list_the_candidates(history: list[str], tmp_path: Path) -> None:
    assert "order.placed" in signalbus("trace", "show", history[0][:-1], cwd=tmp_path).out
    ambiguous = signalbus("trace", "show", history[0][:6], cwd=tmp_path, check=5)
    assert ambiguous.out == ""
    assert all(candidate in ambiguous.err for candidate in history)
    assert "no signal is known" in signalbus("trace", "show", "ffffffff", cwd=tmp_path, check=5).err
    assert "too short" in signalbus("trace", "show", "01a", cwd=tmp_path, check=2).err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("list", "--state", "lost"), "valid are waiting"),
        (("list", "--where", "order_id=1"), "data.order_id"),
        (("list", "--since", "yesterday"), "15m"),
        (("list", "--limit", "0"), "at least 1"),
        (("follow", "--interval", "0"), "above 0"),
        (("list", "a.**"), "a.**"),
        ((), "Commands:"),
        (("lst",), "trace list"),
    ],
)
def test_what_cannot_be_asked_is_a_usage_error(words: tuple[str, ...], says: str, tmp_path: Path) -> None:
    (tmp_path / "signalbus.db").touch()
    assert says in signalbus("trace", *words, cwd=tmp_path, check=2).err


def test_nothing_to_show_makes_no_file(tmp_path: Path) -> None:
    assert "does not exist" in signalbus("trace", "list", cwd=tmp_path, check=5).err
    assert "does not exist" in signalbus("trace", "list", "--store", "none.db", cwd=tmp_path, check=5).err
    assert list(tmp_path.iterdir()) == []


def test_following_shows_signals_as_they_come_and_get_further(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APP)
    with running("run", "shop:bus", cwd=tmp_path, name="shop") as shop:
        shop.wait_err("serving")
        follow = ["trace", "follow", "order.*", "--json", "--interval", "0.1"]
        with running(*follow, cwd=tmp_path, name="follow") as following:
            following.wait_err("following")
            signalbus("publish", "order.placed", "{}", cwd=tmp_path)
            following.wait_out("1 acked")
            signalbus("publish", "order.placed", '{"bad": 1}', cwd=tmp_path)
            following.wait_out("1 dead")
            following.send(signal.SIGINT)
            assert following.wait() == 130
    assert {line["type"] for line in following.json_lines()} == {"order.placed"}


def test_a_type_is_explained(history: list[str], tmp_path: Path) -> None:
    out = signalbus("trace", "explain", "order.placed", cwd=tmp_path).out
    assert "✓ goes to billing: order.* matches; it waits there, as nobody serves it" in out
    nowhere = signalbus("trace", "explain", "order.placed.late", "--json", cwd=tmp_path, check=6).json()
    assert nowhere["routable"] is False
    [subscription] = cast("list[Json]", nowhere["subscriptions"])
    assert subscription["reason"] == "order.* is for 2 words, and there are 3"
    assert "unroutable" in signalbus("trace", "explain", "x.y", cwd=tmp_path, check=6).out


@pytest.mark.parametrize(
    ("pattern", "signal_type", "why"),
    [
        ("order.*", "order", "order.* is for 2 words, and there are 1"),
        ("order.*", "invoice.created", "order.* wants 'order' as word 1, not 'invoice'"),
        ("a.#.z", "a", "a.#.z is for 2 words or more, and there are 1"),
        ("a.#.z", "b.c.z", "a.#.z wants 'a' as word 1, not 'b'"),
        ("a.#.y.z", "a.b.c.z", "a.#.y.z wants 'y' as word 3, not 'c'"),
    ],
)
def test_why_a_pattern_does_not_match_is_said(pattern: str, signal_type: str, why: str) -> None:
    assert mismatch(pattern, signal_type) == why


def test_times_are_read_as_people_write_them() -> None:
    assert read_moment("15m", "--since", 10_000.0) == 9_100.0
    assert read_moment("1.5h", "--since", 10_000.0) == 4_600.0
    assert read_moment("1970-01-01T01:00:00Z", "--since", 0.0) == 3_600.0
    assert read_moment("1970-01-01T01:00:00", "--since", 0.0) == 3_600.0
    with pytest.raises(CommandError, match="no time"):
        read_moment("soon", "--since", 0.0)


def test_the_help_of_the_group_lists_its_commands(tmp_path: Path) -> None:
    out = signalbus("trace", "--help", cwd=tmp_path).out
    assert all(f"trace {word}" in out for word in ("list", "show", "follow", "explain"))
    assert "signalbus trace show 01929f" in signalbus("help", "trace", "show", cwd=tmp_path).out


# RabbitMQ


def test_a_router_keeps_a_store_for_rabbitmq_only(tmp_path: Path) -> None:
    assert "no use for a store" in signalbus("router", "--store", "ledger.db", cwd=tmp_path, check=2).err
    assert "does not exist" in signalbus("router", cwd=tmp_path, check=5).err
    rabbit = environment("amqp://guest:guest@127.0.0.1:1/")
    assert "no store is named" in signalbus("router", cwd=tmp_path, env=rabbit, check=2).err
    assert "--store" in signalbus("trace", "list", cwd=tmp_path, env=rabbit, check=2).err
    assert list(tmp_path.iterdir()) == []


async def test_a_router_keeps_the_ledger_of_rabbitmq(amqp_url: str, tmp_path: Path) -> None:
    env = environment(amqp_url, SIGNALBUS_STORE="ledger.db")
    with running("router", cwd=tmp_path, env=env, name="router") as router:
        await asyncio.to_thread(router.wait_err, "keeps the ledger")
        good, bad, _ = await make_history(amqp_url)

        def stored() -> set[str]:
            result = signalbus("trace", "list", "order.placed", "--json", cwd=tmp_path, env=env)
            signals = cast("list[Json]", json.loads(result.out)["signals"])
            return {str(each["id"]) for each in signals if each["states"] in (["acked"], ["dead"])}

        await asyncio.to_thread(eventually_sync, lambda: stored() == {good, bad}, 60.0)
        router.send(signal.SIGTERM)
        assert await asyncio.to_thread(router.wait) == 0, router.err
    assert "Traceback" not in router.err
    tree = await asyncio.to_thread(lambda: signalbus("trace", "show", bad, cwd=tmp_path, env=env).out)
    assert "no such customer" in tree
    explained = await asyncio.to_thread(
        lambda: signalbus("trace", "explain", "order.placed", cwd=tmp_path, env=env).out
    )
    assert "goes to billing" in explained
