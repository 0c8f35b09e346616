"""How much of everything to do, and where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Counts of a turn, large enough to drown the start and small enough to take seconds."""

    embedded_signals: int = 20_000
    one_at_a_time: int = 2_000
    wake_ups: int = 200
    idle_seconds: float = 10.0
    memory_signals: int = 100_000
    rabbitmq_signals: int = 20_000
    rabbitmq_large_signals: int = 2_000
    steady_signals: int = 5_000
    crowd_signals: int = 20_000
    queued_signals: int = 100_000
    requests: int = 1_000
    kills: int = 15
    killed_together: int = 200
    cycles: int = 1_000
    facts: int = 300_000
    router_seconds: int = 30


QUICK = Sizes(
    embedded_signals=4_000,
    one_at_a_time=300,
    wake_ups=20,
    idle_seconds=2.0,
    memory_signals=20_000,
    rabbitmq_signals=2_000,
    rabbitmq_large_signals=500,
    steady_signals=1_000,
    crowd_signals=3_000,
    queued_signals=5_000,
    requests=100,
    kills=3,
    killed_together=20,
    cycles=50,
    facts=20_000,
    router_seconds=5,
)
#: What `--long` takes instead.
LONG = {"memory_signals": 1_000_000, "queued_signals": 1_000_000, "cycles": 10_000, "router_seconds": 600}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Sizes, a directory for databases, and a RabbitMQ if there is one."""

    sizes: Sizes
    directory: Path
    amqp_url: str | None = None
