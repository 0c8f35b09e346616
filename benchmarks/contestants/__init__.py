"""Clients of RabbitMQ that do the same work: each in its own file, as its documentation shows it."""

from __future__ import annotations

import importlib.util

from .base import Client, Contestant

__all__ = ["Client", "Contestant", "contestants"]


def contestants(url: str, prefetch: int) -> list[Contestant]:
    """Return the contestants that are installed, signalbus first."""
    from .plain_aio_pika import PlainAioPika
    from .signalbus import SignalBus

    found: list[Contestant] = [SignalBus(url, prefetch)]
    if importlib.util.find_spec("faststream") is not None:
        from .faststream import FastStream

        found.append(FastStream(url, prefetch))
    return [*found, PlainAioPika(url, prefetch)]
