"""RabbitMQ: signalbus against FastStream and plain aio-pika on the same node, in turns.

The same for all: a topic exchange, a durable quorum queue with the same arguments, persistent messages of 256 bytes,
publisher confirms, mandatory, one ack a delivery after its handler, the same window. Access logs are off.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from .contestants import Contestant, contestants
from .figures import Benchmark, Leg, Readings, Target, at_least
from .load import publish_all, require
from .plan import Plan

SUBJECT = "signalbus"
PREFETCH = 500


def benchmarks(plan: Plan) -> list[Benchmark]:
    """Return the RabbitMQ benchmarks; none without a RabbitMQ."""
    if plan.amqp_url is None:
        return []
    count = plan.sizes.rabbitmq_signals
    rivals = contestants(plan.amqp_url, PREFETCH)
    targets: dict[str, Target] = {rival.name: at_least(1.0) for rival in rivals if rival.name == "FastStream"}

    def publishing(rival: Contestant, in_flight: int) -> Leg:
        async def leg() -> Readings:
            return {rival.name: [await _publish(rival, count, in_flight)]}

        return leg

    def consuming(rival: Contestant) -> Leg:
        async def leg() -> Readings:
            return {rival.name: [await _consume(rival, count)]}

        return leg

    def benchmark(name: str, title: str, legs: Sequence[Leg]) -> Benchmark:
        return Benchmark(
            name=f"rabbitmq.{name}",
            title=f"RabbitMQ, quorum queue: {title}",
            unit="signals/s",
            subject=SUBJECT,
            legs=tuple(legs),
            targets=targets,
        )

    return [
        *(
            benchmark(
                f"publish_{in_flight}",
                f"publish, {in_flight} in flight",
                [publishing(rival, in_flight) for rival in rivals],
            )
            for in_flight in (256, 500)
        ),
        benchmark("consume", f"consume, handle, ack, prefetch {PREFETCH}", [consuming(rival) for rival in rivals]),
    ]


async def _publish(rival: Contestant, count: int, in_flight: int) -> float:
    async with rival.connected() as client:
        rate = await publish_all(client.publish, count, in_flight)
    require(count, await rival.remove_queue(), f"{rival.name}: messages stored")
    return rate


async def _consume(rival: Contestant, count: int) -> float:
    async with rival.connected() as client:
        await publish_all(client.publish, count, PREFETCH)
        started = time.perf_counter()
        await client.consume(count)
        elapsed = time.perf_counter() - started
    require(0, await rival.remove_queue(), f"{rival.name}: messages left after the acks")
    return count / elapsed
