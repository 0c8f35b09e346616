"""The benchmarks run, with sizes at which their figures mean nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.__main__ import main, measure
from benchmarks.contestants import BY_LOOP, contestants
from benchmarks.figures import Benchmark, Leg, Readings, at_least, below, rows
from benchmarks.load import Countdown, publish_all
from benchmarks.markdown import BEGIN, END, insert
from benchmarks.pace import Pace, stamped
from benchmarks.plan import Sizes
from benchmarks.report import as_json
from benchmarks.runner import Result, run
from benchmarks.turns import Turns

ROOT = Path(__file__).parents[1]

TINY = Sizes(
    embedded_signals=40,
    one_at_a_time=4,
    wake_ups=2,
    idle_seconds=0.1,
    memory_signals=2_000,
    rabbitmq_signals=40,
    rabbitmq_large_signals=20,
    steady_signals=20,
    crowd_signals=40,
    queued_signals=40,
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


@pytest.mark.timeout(300)  # each peer has a process for each turn
async def test_embedded_benchmarks_run_and_write_their_figures(tmp_path: Path) -> None:
    document = tmp_path / "results" / "found.json"
    assert await measure(TINY, 2, ("embedded.",), tmp_path, document, with_rabbitmq=False) == 0
    found = rows_of(document)
    assert set(found) == {
        "embedded.publish",
        "embedded.publish_many",
        "embedded.consume",
        "embedded.round_trip",
        "embedded.one_at_a_time",
        "embedded.idle",
        "embedded.wake_up",
        "embedded.memory",
        "embedded.queued",
        "embedded.queued_fill",
        "embedded.queued_drain",
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
@pytest.mark.timeout(300)  # each peer has a process for each turn
async def test_a_contest_of_all_peers_runs(amqp_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGNALBUS_TEST_AMQP_URL", amqp_url)
    document = tmp_path / "found.json"
    assert (
        await measure(TINY, 1, ("rabbitmq.publish_500", "rabbitmq.steady_p50"), tmp_path, document, with_rabbitmq=True)
        == 0
    )
    found = rows_of(document)
    assert [row["contestant"] for row in found["rabbitmq.publish_500"]] == contestants()
    assert [row["contestant"] for row in found["rabbitmq.steady_p50"]] == [n for n in contestants() if n in BY_LOOP]


@pytest.mark.slow
@pytest.mark.rabbitmq
@pytest.mark.timeout(1_200)
async def test_rabbitmq_benchmarks_run(amqp_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGNALBUS_TEST_AMQP_URL", amqp_url)
    document = tmp_path / "found.json"
    assert await measure(TINY, 1, ("rabbitmq.",), tmp_path, document, with_rabbitmq=True) == 0
    found = rows_of(document)
    contests = {
        *("rabbitmq.publish_1", "rabbitmq.publish_500", "rabbitmq.publish_cpu", "rabbitmq.publish_16k"),
        *("rabbitmq.consume", "rabbitmq.consume_cpu", "rabbitmq.consume_16k"),
        *("rabbitmq.steady_p50", "rabbitmq.steady_p99", "rabbitmq.steady_p999", "rabbitmq.steady_cpu"),
        "rabbitmq.start",
    }
    calls = {"rabbitmq.request", "rabbitmq.request_p99", "rabbitmq.callers"}
    alone = {
        *("rabbitmq.no_answer", "rabbitmq.down", "rabbitmq.down_together", "rabbitmq.cycles"),
        *("rabbitmq.queued", "rabbitmq.queued_fill", "rabbitmq.queued_drain"),
        *("rabbitmq.consumers_1", "rabbitmq.consumers_2", "rabbitmq.consumers_4"),
    }
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


# Telling


def document(tmp_path: Path) -> Path:
    found = {
        "environment": {
            "started": "2026-01-31T12:00:00+00:00",
            "python": "3.11",
            "machine": "an abacus",
            "load": "0.1",
            "file system": "clay",
        },
        "benchmarks": [
            as_json(Result(benchmark=contest(), rows=rows(contest(), [{"ours": [9.0], "theirs": [20.0]}]))),
            as_json(Result(benchmark=contest(), error="OSError: no disk")),
        ],
    }
    path = tmp_path / "found.json"
    path.write_text(json.dumps(found), encoding="utf-8")
    return path


def test_figures_are_put_into_a_page_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    insert(document(tmp_path), page)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert (
        "Measured on 31 January 2026 at 12:00 UTC. an abacus, clay; load average at the beginning 0.1. python 3.11."
        in text
    )
    assert "| A contest (signals/s) | ours | 9.00 [9.00 .. 9.00] |  | < 10 | yes |" in text
    assert "| theirs | 20.00 [20.00 .. 20.00] | 0.45 | ≥ 0.5 | **no** |" in text
    assert "failed: OSError: no disk" in text


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing", encoding="utf-8")
    with pytest.raises(ValueError, match="no place"):
        insert(document(tmp_path), page)
    assert page.read_text(encoding="utf-8") == "nothing"


def test_pictures_are_drawn_of_what_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = document(tmp_path)
    found = json.loads(path.read_text(encoding="utf-8"))
    found["benchmarks"][0]["name"] = "embedded.publish"
    path.write_text(json.dumps(found), encoding="utf-8")
    # In a process of its own: matplotlib keeps its fonts open for good.
    subprocess.run([sys.executable, "-m", "benchmarks.plots", path, tmp_path / "images"], cwd=ROOT, check=True)
    assert [each.name for each in (tmp_path / "images").iterdir()] == ["bench-embedded.png"]


async def test_turns_are_measured_once_for_all_their_figures() -> None:
    measured: list[int] = []

    async def measure() -> dict[str, float]:
        measured.append(1)
        return {"rate": 10.0 * len(measured), "cpu": 1.0 * len(measured)}

    turns = Turns("ours", measure)
    rate, cpu = turns.leg("rate"), turns.leg("cpu")
    assert [await rate(), await rate()] == [{"ours": [10.0]}, {"ours": [20.0]}]
    assert [await cpu(), await cpu(), await cpu()] == [{"ours": [1.0]}, {"ours": [2.0]}, {"ours": [3.0]}]
    assert len(measured) == 3


async def test_pace_measures_from_the_first_tenth_on() -> None:
    pace = Pace(20, stamped=True)
    for _ in range(20):
        pace.hit(stamped(time.time(), 16))
    await pace.wait_done()
    assert pace.done
    assert pace.cost().messages == 18
    assert pace.cost().figures["rate"] > 0
    assert len(pace.latencies) == 20
