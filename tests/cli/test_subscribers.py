"""subscribers, and publish until acked: who serves what, and what became of a signal."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import pytest

from tests.cli.program import Json, Running, environment, running, signalbus
from tests.support import eventually_sync

APP = """
import os, time
from signalbus import Bus, Reject
bus = Bus(name="shop")

@bus.subscribe("order.*", name="billing")
async def bill(data: dict) -> None:
    if data.get("bad"):
        raise Reject("no such customer")
    if data.get("block"):
        time.sleep(60)
"""


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Running]:
    """A program that serves one subscription."""
    (tmp_path / "shop.py").write_text(APP)
    with running("run", "shop:bus", cwd=tmp_path, name="shop") as shop:
        shop.wait_err("serving")
        yield shop


def billing(tmp_path: Path) -> Json:
    fields = signalbus("subscribers", "--json", cwd=tmp_path).json()
    [status] = [each for each in cast("list[Json]", fields["subscriptions"]) if each["name"] == "billing"]
    return status


def sessions(status: Json) -> list[Json]:
    return cast("list[Json]", status["sessions"])


# A look asks everybody once, and waits 0.25 s for the answers: a busy machine can keep a healthy program from its own.


def answered(tmp_path: Path) -> Json:
    """Return what a look shows of billing, once all who serve it have answered."""

    def look() -> Json:
        status = billing(tmp_path)
        return status if all(session["answering"] for session in sessions(status)) else {}

    return eventually_sync(look, 30, message="an answer")


def shown(text: str, tmp_path: Path, env: Mapping[str, str] | None = None) -> str:
    """Return what a look shows to people, once ``text`` is in it."""

    def look() -> str:
        out = signalbus("subscribers", cwd=tmp_path, env=env).out
        return out if text in out else ""

    return eventually_sync(look, 30, message=text)


def test_who_serves_a_subscription_is_listed(shop: Running, tmp_path: Path) -> None:
    status = answered(tmp_path)
    assert (status["state"], status["in_flight"], status["waiting"]) == ("up", 0, 0)
    [session] = sessions(status)
    assert (session["name"], session["answering"]) == ("shop", True)
    out = signalbus("subscribers", cwd=tmp_path).out
    assert "✓ up" in out
    assert f"shop (pid {session['pid']} at " in out
    shop.send(signal.SIGTERM)
    shop.wait()
    status = billing(tmp_path)
    assert (status["state"], status["sessions"]) == ("gone", [])
    assert "✗ gone" in signalbus("subscribers", cwd=tmp_path).out


def test_a_blocked_subscriber_is_shown_as_such(shop: Running, tmp_path: Path) -> None:
    signalbus("publish", "order.placed", '{"block": 1}', cwd=tmp_path)
    signalbus("publish", "order.placed", "{}", cwd=tmp_path)
    assert "does not answer" in shown("! stalled", tmp_path)  # from when it has taken the first
    shop.send(signal.SIGKILL)


def test_watching_goes_on_until_it_is_stopped(shop: Running, tmp_path: Path) -> None:
    with running("subscribers", "--watch", "--json", "--interval", "0.1", cwd=tmp_path, name="watch") as watch:
        watch.wait_out('"billing"', 3)
        watch.send(signal.SIGINT)
        assert watch.wait() == 130
    assert all(line["schema_version"] == 1 for line in watch.json_lines())


def test_nothing_to_show_makes_no_file(tmp_path: Path) -> None:
    assert "does not exist" in signalbus("subscribers", cwd=tmp_path, check=5).err
    assert os.listdir(tmp_path) == []  # noqa: PTH208


def test_publishing_until_acked_says_what_became_of_it(shop: Running, tmp_path: Path) -> None:
    publish = ["publish", "order.placed", "--until", "acked", "--timeout", "20"]
    fields = signalbus(*publish, "{}", "--json", cwd=tmp_path).json()
    [outcome] = cast("list[Json]", fields["subscriptions"])
    assert (outcome["subscription"], outcome["outcome"]) == ("billing", "acked")
    result = signalbus(*publish, '{"bad": 1}', cwd=tmp_path, check=6)
    assert "✗ dead  billing" in result.out
    assert "no such customer" in result.out
    shop.send(signal.SIGTERM)
    shop.wait()
    result = signalbus("publish", "order.placed", "{}", "--until", "acked", "--timeout", "3", cwd=tmp_path, check=7)
    assert "… pending  billing" in result.out
    assert "not settled within 3 s by billing" in result.err


def test_another_audience_than_expected_is_refused(shop: Running, tmp_path: Path) -> None:
    assert "1 subscriptions match" in signalbus("publish", "order.x", "{}", "--expect", "2", cwd=tmp_path, check=6).err
    signalbus("publish", "order.x", "{}", "--expect", "1", cwd=tmp_path)


def test_subscribers_of_rabbitmq(amqp_url: str, tmp_path: Path) -> None:
    env = environment(amqp_url)
    (tmp_path / "shop.py").write_text(APP)
    with running("run", "shop:bus", cwd=tmp_path, env=env) as shop:
        shop.wait_err("serving")
        assert "shop (pid " in shown("✓ up", tmp_path, env)


def deleted_when_nobody_serves_it(env: dict[str, str] | None, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APP)
    with running("run", "shop:bus", cwd=tmp_path, env=env) as shop:
        shop.wait_err("serving")
        refused = signalbus("topology", "--delete", "billing", "--yes", cwd=tmp_path, env=env, check=1)
        assert "would make it again" in refused.err
    signalbus("publish", "order.x", "{}", cwd=tmp_path, env=env)
    assert "Nobody can be asked" in signalbus("topology", "--delete", "billing", cwd=tmp_path, env=env, check=2).err
    out = signalbus("topology", "--delete", "billing", "--yes", cwd=tmp_path, env=env).out
    assert out == "deleted billing, with 1 signals\n"
    assert (
        "no subscription 'billing'" in signalbus("topology", "--delete", "billing", cwd=tmp_path, env=env, check=5).err
    )
    assert signalbus("topology", "--json", cwd=tmp_path, env=env).json()["subscriptions"] == []


def test_a_subscription_is_deleted_when_nobody_serves_it(tmp_path: Path) -> None:
    deleted_when_nobody_serves_it(None, tmp_path)


def test_a_subscription_of_rabbitmq_is_deleted_when_nobody_serves_it(amqp_url: str, tmp_path: Path) -> None:
    deleted_when_nobody_serves_it(environment(amqp_url), tmp_path)
