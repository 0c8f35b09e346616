"""bench: its figures, and that it leaves nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import aio_pika
import pytest
from aio_pika.exceptions import ChannelNotFoundEntity

from signalbus import Bus
from signalbus.bench.place import SUBSCRIPTION, place
from signalbus.bench.series import Series
from signalbus.brokers.rabbitmq.topology import Exchange, Queue, Topology
from signalbus.config import RabbitUrl, parse_url
from tests.cli.program import Json, environment, signalbus

SERIES = ["publish", "publish_in_flight", "consume", "steady", "request", "request_callers"]


def test_bench_measures_beside_the_file_and_leaves_nothing(tmp_path: Path) -> None:
    env = environment(f"sqlite:///{tmp_path / 'mine.db'}")
    found = signalbus("bench", "--seconds", "0.6", "--json", cwd=tmp_path, env=env).json()
    series = cast("list[Json]", found["series"])
    assert [each["name"] for each in series] == SERIES
    assert all(cast("int", each["count"]) > 0 for each in series)
    assert found["bytes"] == 256
    assert list(tmp_path.iterdir()) == []


def test_bench_prints_a_line_for_each_load(tmp_path: Path) -> None:
    result = signalbus("bench", "--seconds", "0.6", "--size", "1000", cwd=tmp_path)
    assert len(result.out.splitlines()) == len(SERIES)
    assert "p99" in result.out
    assert "1000 bytes" in result.err


@pytest.mark.parametrize("words", [("--seconds", "0.1"), ("--size", "7"), ("--size", "99999999")])
def test_bench_names_what_is_out_of_range(words: tuple[str, str], tmp_path: Path) -> None:
    assert words[0] in signalbus("bench", *words, cwd=tmp_path, check=2).err


def test_bench_says_that_there_is_no_such_directory(tmp_path: Path) -> None:
    assert "mkdir" in signalbus("bench", "--url", "sqlite:///no/such.db", cwd=tmp_path, check=5).err


def test_bench_says_that_the_broker_is_away(tmp_path: Path) -> None:
    signalbus("bench", "--url", "amqp://127.0.0.1:1/", "--timeout", "1", cwd=tmp_path, check=3)


@pytest.mark.rabbitmq
def test_bench_runs_on_rabbitmq(amqp_url: str, tmp_path: Path) -> None:
    found = signalbus("bench", "--seconds", "0.6", "--json", cwd=tmp_path, env=environment(amqp_url)).json()
    assert [each["name"] for each in cast("list[Json]", found["series"])] == SERIES


@pytest.mark.rabbitmq
async def test_a_place_at_rabbitmq_is_gone_afterwards(amqp_url: str) -> None:
    async def never(data: bytes) -> None:
        raise AssertionError

    async with place(amqp_url, 30.0) as url:
        async with Bus(url) as bus:
            await (await bus.subscribe("a", handler=never, name=SUBSCRIPTION)).pause()
            await bus.publish("a", b"left behind")
        parsed = parse_url(url)
    assert isinstance(parsed, RabbitUrl)
    assert parsed.prefix.startswith("signalbus-bench-")
    topology = Topology(parsed.prefix, parsed.queue_type)
    for each in (*topology.base(), topology.registry_stream(), topology.subscription(SUBSCRIPTION)):
        if isinstance(each, Queue | Exchange):
            assert not await exists(amqp_url, each)


async def exists(amqp_url: str, declared: Queue | Exchange) -> bool:
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        try:
            if isinstance(declared, Queue):
                await channel.declare_queue(declared.name, passive=True)
            else:
                await channel.declare_exchange(declared.name, passive=True)
        except ChannelNotFoundEntity:
            return False
    return True


def test_a_series_tells_rates_times_and_costs() -> None:
    series = Series(name="a", title="A", count=4, seconds=2.0, cpu_seconds=0.001, times=(0.004, 0.001, 0.002, 0.003))
    assert series.rate == 2.0
    assert series.cpu_microseconds == 250.0
    assert (series.milliseconds(0.0), series.milliseconds(0.5), series.milliseconds(0.99)) == (1.0, 3.0, 4.0)
    steady = Series(name="a", title="A", count=4, seconds=2.0, cpu_seconds=0.0, steady=True)
    assert (steady.rate, steady.milliseconds(0.5)) == (None, None)
