"""dead list, show, replay, cancel, discard, restore, export and audit, on the embedded broker."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from pathlib import Path
from typing import cast

import pytest

from signalbus import Bus, RetryPolicy
from tests.cli.program import PROGRAM, Json, Result, environment, running, signalbus
from tests.support import eventually_sync

ONCE = RetryPolicy(max_attempts=1)
APP = """
from signalbus import Bus, RetryPolicy
bus = Bus(name="shop")

@bus.subscribe("order.*", name="billing", retry=RetryPolicy(max_attempts=1))
async def bill(data: dict) -> None:
    if data["n"] == 3:
        raise ValueError("still bad")
"""


async def _bury(url: str, count: int) -> None:
    """Make dead letters of two kinds, in turn; another subscription takes the same signals well."""
    bus = Bus(url, name="shop")

    async def bill(data: dict[str, int]) -> None:
        if data["n"] % 2:
            raise TimeoutError(f"gateway \x1b[31m {data['n']}")
        raise KeyError(str(data["n"]))

    async def audit(data: dict[str, int]) -> None:
        pass

    bus.subscribe("order.*", handler=bill, name="billing", retry=ONCE)
    bus.subscribe("#", handler=audit, name="audit")
    async with bus:
        for number in range(count):
            await bus.publish("order.placed", {"n": number, "large": 2**70}, until="acked")


@pytest.fixture
async def six(tmp_path: Path) -> Path:
    await _bury(f"sqlite:///{tmp_path / 'signalbus.db'}", 6)
    (tmp_path / "shop.py").write_text(APP)
    return tmp_path


def dead(cwd: Path, *words: str, check: int | None = 0) -> Result:
    return signalbus("dead", *words, cwd=cwd, check=check)


def letters(cwd: Path, *words: str) -> list[Json]:
    return cast("list[Json]", dead(cwd, "list", "--each", "--json", *words).json()["letters"])


def states(cwd: Path, *words: str) -> list[str]:
    return [str(letter["state"]) for letter in letters(cwd, *words)]


def test_dead_letters_are_listed_in_groups_and_one_by_one(six: Path) -> None:
    groups = cast("list[Json]", dead(six, "list", "--json").json()["groups"])
    assert [(group["error"], group["count"], group["subscription"]) for group in groups] == [
        ("TimeoutError", 3, "billing"),
        ("KeyError", 3, "billing"),
    ]
    assert str(groups[0]["place"]).endswith(" in bill")
    of_group = letters(six, "--group", str(groups[0]["id"]))
    assert {letter["error"] for letter in of_group} == {"TimeoutError"}
    assert len(letters(six)) == 6
    assert len(letters(six, "--error", "KeyError", "--subscription", "billing", "--type", "order.*")) == 3
    assert letters(six, "--until", "1h") == []
    assert len(letters(six, "--limit", "2")) == 2
    out = dead(six, "list").out
    assert "3 ✗ dead" in out
    assert "\x1b" not in out


def test_a_dead_letter_is_shown_with_all_that_happened_to_it(six: Path) -> None:
    letter = letters(six, "--error", "TimeoutError")[0]
    shown = dead(six, "show", str(letter["id"])[:8])
    assert "TimeoutError: gateway \\x1b[31m 5" in shown.out
    assert "Traceback" in shown.out
    assert "\x1b" not in shown.out
    by_signal = dead(six, "show", str(letter["signal"]), "--json").json()
    assert by_signal["id"] == letter["id"]
    event = cast("Json", by_signal["event"])
    assert event["data"] == {"n": 5, "large": 2**70}
    dead(six, "show", "abc", check=2)
    dead(six, "show", "ffffffffffff", check=5)


def test_a_replay_waits_until_each_is_acked_or_dead_again(six: Path) -> None:
    with running("run", "shop:bus", cwd=six) as service:
        service.wait_err("serving")
        result = dead(six, "replay", "--all", "--yes", "--json", check=6).json()
    assert (result["total"], result["acked"], result["died_again"]) == (6, 5, 1)
    assert sorted(states(six, "--all")) == ["acked"] * 5 + ["dead"]
    again = letters(six)[0]
    assert (again["deaths"], again["error"]) == (2, "ValueError")
    actions = [entry["action"] for entry in cast("list[Json]", dead(six, "audit", "--json").json()["entries"])]
    assert "replay" in actions
    assert "dead again" in actions


def test_who_asks_a_second_time_hears_that_it_is_replaying(six: Path) -> None:
    letter = str(letters(six)[0]["id"])
    dead(six, "replay", letter, "--no-wait")  # nobody serves the subscription
    assert "already replaying: 1 dead letter" in dead(six, "replay", letter, check=6).err
    assert dead(six, "replay", letter, "--timeout", "20", check=6).code == 6
    assert dead(six, "restore", letter, "--stuck").out == "restored 1 dead letter\n"


def test_a_replay_that_nobody_handles_in_time_says_so(six: Path) -> None:
    letter = str(letters(six)[0]["id"])
    # It has as long to open the file, and to send the letter, as it then waits.
    assert "1 not settled yet" in dead(six, "replay", letter, "--timeout", "3", check=7).out
    assert states(six) == ["replaying", *["dead"] * 5]


def test_ctrl_c_leaves_what_is_not_sent_dead(six: Path) -> None:
    with running("dead", "replay", "--all", "--yes", "--rate", "0.5", cwd=six) as replay:
        eventually_sync(lambda: "replaying" in states(six), 30, message="the first to be sent")
        replay.send(signal.SIGINT)
        assert replay.wait() == 130
        assert "not sent, and dead as before" in replay.err
    assert "waiting" not in states(six)
    assert states(six).count("dead") >= 3


def test_discarded_ones_are_kept_and_come_back(six: Path) -> None:
    assert dead(six, "discard", "--error", "KeyError", "--yes", "--note", "by hand").out == "discarded 3 dead letters\n"
    assert states(six) == ["dead"] * 3
    assert states(six, "--all").count("discarded") == 3
    dead(six, "discard", "--error", "KeyError", "--yes", check=6)
    assert "by hand" in dead(six, "audit").out
    assert dead(six, "restore", "--all", "--yes", "--json").json()["restored"] == 3
    assert states(six) == ["dead"] * 6


def test_a_dry_run_changes_nothing(six: Path) -> None:
    assert dead(six, "replay", "--all", "--dry-run").out == "would replay 6 dead letters\n"
    assert dead(six, "discard", "--error", "KeyError", "--dry-run").out == "would discard 3 dead letters\n"
    assert dead(six, "restore", "--all", "--dry-run").out == "would restore 0 dead letters\n"
    assert states(six) == ["dead"] * 6


def test_nothing_is_changed_that_nobody_named_or_confirmed(six: Path) -> None:
    assert "say which" in dead(six, "replay", check=2).err
    assert "pass --yes" in dead(six, "replay", "--all", check=2).err
    assert "--stuck is for" in dead(six, "restore", "--stuck", check=2).err
    assert states(six) == ["dead"] * 6


def test_a_terminal_is_asked(six: Path) -> None:
    parent, child = pty.openpty()
    try:
        process = subprocess.Popen(
            [*PROGRAM, "dead", "discard", "--all"], cwd=six, env=environment(), stdin=child, stdout=child, stderr=child
        )
        seen = b""
        while b"[y/N]" not in seen:
            seen += os.read(parent, 1024)
        os.write(parent, b"n\n")
        assert process.wait(60) == 1
    finally:
        os.close(child)
        os.close(parent)
    assert b"Discard 6 dead letters?" in seen
    assert states(six) == ["dead"] * 6


def test_an_export_can_be_published_again(six: Path) -> None:
    lines = dead(six, "export").out.splitlines()
    exported = [cast("Json", json.loads(line)) for line in lines]
    assert len(exported) == 6
    assert {str(cast("list[Json]", each["history"])[0]["error"]) for each in exported} == {"KeyError", "TimeoutError"}
    events = "".join(json.dumps(each["event"]) + "\n" for each in exported)
    assert signalbus("publish", "--lines", "-", cwd=six, stdin=events).code == 0
    assert dead(six, "export", "--error", "Nothing").out == ""


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    dead(tmp_path, "list", check=5)
    assert list(tmp_path.iterdir()) == []


def test_no_router_is_said(amqp_url: str, tmp_path: Path) -> None:
    result = signalbus("dead", "list", "--url", amqp_url, "--router", "http://127.0.0.1:9", cwd=tmp_path, check=3)
    assert "127.0.0.1:9" in result.err
