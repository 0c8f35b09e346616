"""The recorder as a program: each signal once, whatever happens to it."""

from __future__ import annotations

import json
import random
import signal
from collections import Counter
from pathlib import Path
from typing import cast

import pytest

from signalbus import Bus, Signal
from tests.cli.program import environment, running, signalbus
from tests.support import eventually_sync

COUNT = 3_000
KILLS = 6


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return environment(
        f"sqlite:///{tmp_path / 'bus.db'}",
        RECORDER_DIRECTORY=str(tmp_path / "recorded"),
        RECORDER_PATTERN="order.*, invoice.#",
        RECORDER_MAX_BYTES="100000",
        RECORDER_CONCURRENCY="32",
    )


def recorded(directory: Path) -> list[dict[str, object]]:
    """Return the whole entries, the last of which may be under way."""
    entries: list[dict[str, object]] = []
    for path in sorted((directory / "recorded").glob("*.jsonl")):
        data = path.read_bytes()
        entries += [cast("dict[str, object]", json.loads(line)) for line in data[: data.rfind(b"\n") + 1].splitlines()]
    return entries


def lines(directory: Path) -> int:
    """Count lines; cheaper than reading them."""
    return sum(path.read_bytes().count(b"\n") for path in (directory / "recorded").glob("*.jsonl"))


async def publish(env: dict[str, str], signals: list[Signal]) -> None:
    async with Bus(env["SIGNALBUS_URL"], name="shop") as bus:
        await bus.publish_many(signals)


async def test_each_signal_is_recorded_once_in_spite_of_kills(tmp_path: Path, env: dict[str, str]) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    with running("run", "consumers.recorder:bus", cwd=tmp_path, env=env) as recorder:
        recorder.wait_err("serving recorder")
        recorder.send(signal.SIGTERM)
        recorder.wait()
    signals = [Signal(type="order.placed", source="shop", data={"n": n, "pad": "x" * 100}) for n in range(COUNT)]
    await publish(env, signals)
    for number in range(KILLS):
        goal = lines(tmp_path) + chance.randrange(1, COUNT // KILLS // 2)
        with running("run", "consumers.recorder:bus", cwd=tmp_path, env=env, name=f"kill{number}") as recorder:
            eventually_sync(lambda goal=goal: lines(tmp_path) >= goal, 60, interval=0.0005)  # type: ignore[misc]
            recorder.send(signal.SIGKILL)
            recorder.wait()
    with running("run", "consumers.recorder:bus", cwd=tmp_path, env=env, name="last") as recorder:
        eventually_sync(lambda: lines(tmp_path) >= COUNT, 60)
        recorder.send(signal.SIGTERM)
        assert recorder.wait() == 0
    counts = Counter(entry["id"] for entry in recorded(tmp_path))
    assert counts == Counter(signal.id for signal in signals)
    assert len(list((tmp_path / "recorded").glob("*.jsonl"))) > 3


async def test_lines_are_events_that_can_be_published_again(tmp_path: Path, env: dict[str, str]) -> None:
    signals = [
        Signal(type="order.placed", source="shop", subject="A1", data={"n": 2**70}, extensions={"tenant": "x"}),
        Signal(type="invoice.sent.twice", source="shop", data=b"\xff"),
        Signal(type="order.empty", source="shop", correlationid="7"),
        Signal(type="order.text", source="../../etc\\x", data="../\u202e", datacontenttype="text/plain"),
    ]
    with running("run", "consumers.recorder:bus", cwd=tmp_path, env=env) as recorder:
        recorder.wait_err("serving recorder")
        await publish(env, signals)
        eventually_sync(lambda: lines(tmp_path) == len(signals), 30)
        first = {str(entry["id"]): entry for entry in recorded(tmp_path)}
        [path] = (tmp_path / "recorded").glob("*.jsonl")
        signalbus("publish", "--lines", f"@{path}", cwd=tmp_path, env=env)
        recorder.send(signal.SIGTERM)
        assert recorder.wait() == 0
    assert {str(entry["id"]): entry for entry in recorded(tmp_path)} == first
    assert lines(tmp_path) == len(signals)
    assert first[signals[0].id]["data"] == {"n": 2**70}
    assert first[signals[1].id]["data_base64"] == "/w=="


def test_a_second_recorder_is_refused(tmp_path: Path, env: dict[str, str]) -> None:
    with running("run", "consumers.recorder:bus", cwd=tmp_path, env=env) as recorder:
        recorder.wait_err("serving recorder")
        result = signalbus("run", "consumers.recorder:bus", cwd=tmp_path, env=env, check=2)
        assert f"process {recorder.pid} writes" in result.err


@pytest.mark.parametrize(("name", "value"), [("RECORDER_MAX_BYTES", "no"), ("RECORDER_WINDOW", "0")])
def test_a_wrong_setting_is_named(name: str, value: str, tmp_path: Path, env: dict[str, str]) -> None:
    result = signalbus("run", "consumers.recorder:bus", cwd=tmp_path, env={**env, name: value}, check=2)
    assert name in result.err
