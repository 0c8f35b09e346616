"""RabbitMQ: signalbus against its peers on the same node, in turns, each turn in a process of its own.

The same for all, as far as they can: a topic exchange, a durable quorum queue, persistent messages, publisher confirms,
mandatory, one ack a message after its handler, a prefetch of 500. signalbus has every guarantee and its ledger on.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from . import contest
from .contestants import BY_LOOP, C_CLIENT, FASTSTREAM, SIGNALBUS, absent, contestants
from .contestants.base import PREFETCH
from .figures import Benchmark, Target, at_least, at_most
from .plan import Plan, Sizes
from .turns import Turns

SMALL, LARGE = 256, 16 * 1024
PER_SECOND = 1_000
TIMEOUT_SECONDS = 600.0

_TIES = at_least(1.0)  # to any peer


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """One load for several contestants. ``figures``: name of a benchmark -> figure, title, unit, targets."""

    work: str
    count: int
    size: int
    window: int
    names: Sequence[str]
    figures: Mapping[str, tuple[str, str, str, Mapping[str, Target]]]


def benchmarks(plan: Plan) -> list[Benchmark]:
    """Return the RabbitMQ benchmarks; none without a RabbitMQ."""
    if plan.amqp_url is None:
        return []
    for name, reason in absent().items():
        print(f"!!! {name} does not take part: {reason}", file=sys.stderr)
    return [benchmark for each in _contests(plan.sizes) for benchmark in _benchmarks(each, plan.amqp_url)]


def _contests(sizes: Sizes) -> list[Contest]:
    everybody = contestants()
    by_loop = [name for name in everybody if name in BY_LOOP]
    peers = {name: _TIES for name in everybody if name not in (SIGNALBUS, C_CLIENT)}
    rate, cpu = "signals/s", "µs of CPU a signal"
    cheap = {FASTSTREAM: at_most(0.25)}
    quick = {name: at_most(1.0) for name in by_loop if name != SIGNALBUS}
    publish, consume = "publish", "consume, handle, ack"
    count, large, slow = sizes.rabbitmq_signals, sizes.rabbitmq_large_signals, sizes.one_at_a_time
    return [
        Contest(
            work="publish",
            count=slow,
            size=SMALL,
            window=1,
            names=everybody,
            figures={"publish_1": ("rate", "publish, one at a time", rate, peers)},
        ),
        Contest(
            work="publish",
            count=count,
            size=SMALL,
            window=500,
            names=everybody,
            figures={
                "publish_500": (
                    "rate",
                    f"{publish}, 500 in flight",
                    rate,
                    {**peers, FASTSTREAM: at_least(5.0), C_CLIENT: at_least(0.5)},
                ),
                "publish_cpu": ("cpu", f"{publish}, 500 in flight", cpu, cheap),
            },
        ),
        Contest(
            work="publish",
            count=large,
            size=LARGE,
            window=500,
            names=everybody,
            figures={"publish_16k": ("rate", f"{publish} 16 KiB, 500 in flight", rate, peers)},
        ),
        Contest(
            work="consume",
            count=count,
            size=SMALL,
            window=PREFETCH,
            names=everybody,
            figures={
                "consume": ("rate", consume, rate, {**peers, FASTSTREAM: at_least(6.0)}),
                "consume_cpu": ("cpu", consume, cpu, cheap),
            },
        ),
        Contest(
            work="consume",
            count=large,
            size=LARGE,
            window=PREFETCH,
            names=everybody,
            figures={"consume_16k": ("rate", f"{consume} 16 KiB", rate, peers)},
        ),
        Contest(
            work="latency",
            count=sizes.steady_signals,
            size=SMALL,
            window=PER_SECOND,
            names=by_loop,
            figures={
                "steady_p50": ("p50", "from publish to handler at 1,000/s, p50", "ms", quick),
                "steady_p99": ("p99", "the same, p99", "ms", {**quick, FASTSTREAM: at_most(0.5)}),
                "steady_p999": ("p999", "the same, p99.9", "ms", quick),
                "steady_cpu": ("cpu", "the same, publisher and subscriber", cpu, {}),
            },
        ),
    ]


def _benchmarks(load: Contest, url: str) -> list[Benchmark]:
    turns = [
        Turns(name, functools.partial(contest.turn, name, load.work, url, load.count, load.size, load.window))
        for name in load.names
    ]
    return [
        Benchmark(
            name=f"rabbitmq.{name}",
            title=f"RabbitMQ: {title}",
            unit=unit,
            subject=SIGNALBUS,
            legs=tuple(each.leg(figure) for each in turns),
            targets={peer: target for peer, target in targets.items() if peer in load.names},
            timeout_seconds=TIMEOUT_SECONDS,
        )
        for name, (figure, title, unit, targets) in load.figures.items()
    ]
