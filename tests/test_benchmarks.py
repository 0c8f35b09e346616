"""The benchmarks run, with sizes at which their figures mean nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.__main__ import main, measure
from benchmarks.figures import Benchmark, Leg, Readings, at_least, below, rows
from benchmarks.load import Countdown, publish_all
from benchmarks.plan import Sizes
from benchmarks.runner import run

TINY = Sizes(
    embedded_signals=40,
    one_at_a_time=4,
    wake_ups=2,
    idle_seconds=0.1,
    memory_signals=2_000,
    rabbitmq_signals=40,
    requests=10,
    kills=1,
    killed_together=4,
    cycles=10,
    facts=2_000,
    router_seconds=2,
)


def contest(*legs: Leg, once: bool = False) -> Benchmark:
    return Benchmark(
        name="test.contest",
        title="A contest",
        unit="signals/s",
        subject="ours",
        legs=legs,
        targets={"ours": below(10.0), "theirs": at_least(0.5)},
        once=once,
    )


def leg(name: str, values: Sequence[float], order: list[str]) -> Leg:
    remaining = iter(values)

    async def turn() -> Readings:
        order.append(name)
        return {name: [next(remaining)]}

    return turn


def rows_of(document: Path) -> dict[str, list[dict[str, object]]]:
    found = json.loads(document.read_text(encoding="utf-8"))
    assert [benchmark["error"] for benchmark in found["benchmarks"]] == [None] * len(found["benchmarks"])
    return {benchmark["name"]: benchmark["rows"] for benchmark in found["benchmarks"]}


# Figures and runner


def test_ratios_are_taken_turn_by_turn_and_summed_up_by_their_median() -> None:
    ours, theirs = rows(
        contest(), [{"ours": [2], "theirs": [2]}, {"ours": [3], "theirs": [1]}, {"theirs": [4], "ours": [8]}]
    )
    assert (ours.value.median, ours.value.low, ours.value.high, ours.value.count) == (3, 2, 8, 3)
    assert ours.ratio is None
    assert theirs.ratio is not None
    assert (theirs.ratio.low, theirs.ratio.median, theirs.ratio.high) == (1, 2, 3)


def test_subjects_target_is_for_its_value_and_a_rivals_for_the_ratio() -> None:
    ours, theirs = rows(contest(), [{"ours": [9.0], "theirs": [20.0]}])
    assert ours.met is True
    assert theirs.met is False  # 9/20 is not half


async def test_contestants_take_turns_in_rotating_order() -> None:
    order: list[str] = []
    result = await run(contest(leg("ours", [1, 2, 3], order), leg("theirs", [2, 4, 6], order)), rounds=3)
    assert result.error is None
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]


async def test_benchmark_with_samples_enough_has_one_round() -> None:
    order: list[str] = []
    await run(contest(leg("ours", [1], order), once=True), rounds=3)
    assert order == ["ours"]


async def test_failure_is_part_of_the_result() -> None:
    async def fail() -> Readings:
        raise OSError("no disk")

    result = await run(contest(fail), rounds=1)
    assert result.error == "OSError: no disk"
    assert not result.rows


async def test_load_keeps_a_number_of_calls_under_way() -> None:
    calls, under_way, most = 0, 0, 0
    all_in = Countdown(4)

    async def publish() -> None:
        nonlocal calls, under_way, most
        calls += 1
        under_way += 1
        most = max(most, under_way)
        all_in.hit()
        await all_in.wait_done()
        under_way -= 1

    assert await publish_all(publish, 20, 4) > 0
    assert (calls, under_way, most) == (20, 0, 4)


def test_unknown_name_is_refused_with_the_known_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "nothing", "--json", str(tmp_path / "found.json")]) == 2
    assert "embedded.publish" in capsys.readouterr().err


# The benchmarks themselves


async def test_embedded_benchmarks_run_and_write_their_figures(tmp_path: Path) -> None:
    document = tmp_path / "results" / "found.json"
    assert await measure(TINY, 2, ("embedded.",), tmp_path, document, with_rabbitmq=False) == 0
    found = rows_of(document)
    assert set(found) == {
        "embedded.publish",
        "embedded.consume",
        "embedded.round_trip",
        "embedded.one_at_a_time",
        "embedded.idle",
        "embedded.wake_up",
        "embedded.memory",
        "embedded.request",
        "embedded.callers",
        "embedded.no_answer",
        "embedded.down",
        "embedded.down_together",
        "embedded.cycles",
    }
    assert [row["contestant"] for row in found["embedded.one_at_a_time"]] == ["signalbus", "sqlite3, a commit a row"]
    assert os.listdir(tmp_path) == ["results"]  # noqa: PTH208


@pytest.mark.rabbitmq
async def test_rabbitmq_benchmarks_run(amqp_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGNALBUS_TEST_AMQP_URL", amqp_url)
    document = tmp_path / "found.json"
    assert await measure(TINY, 1, ("rabbitmq.",), tmp_path, document, with_rabbitmq=True) == 0
    found = rows_of(document)
    contests = {"rabbitmq.publish_256", "rabbitmq.publish_500", "rabbitmq.consume"}
    calls = {"rabbitmq.request", "rabbitmq.callers"}
    alone = {"rabbitmq.no_answer", "rabbitmq.down", "rabbitmq.down_together", "rabbitmq.cycles"}
    assert set(found) == contests | calls | alone
    for peer, names in (("aio-pika", contests), ("aio-pika RPC", calls)):
        for name in names:
            assert {"signalbus", peer} <= {row["contestant"] for row in found[name]}


@pytest.mark.rabbitmq
async def test_router_benchmarks_run(amqp_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGNALBUS_TEST_AMQP_URL", amqp_url)
    document = tmp_path / "found.json"
    assert await measure(TINY, 1, ("ledger.collect", "ledger.router"), tmp_path, document, with_rabbitmq=True) == 0
    found = rows_of(document)
    assert set(found) == {"ledger.collect", "ledger.collect_cpu", "ledger.router_memory"}
    assert [row["contestant"] for row in found["ledger.router_memory"]] == ["at 100%", "at 50%", "at 10%"]
