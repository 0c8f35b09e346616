"""Brokers: the seam in `base`, and one package for each engine."""

from __future__ import annotations

from ..config import BrokerUrl, SqliteUrl
from .base import Broker


def connect(url: BrokerUrl) -> Broker:
    """Return the broker for a parsed URL, not yet open. Imports only the engine that is asked for."""
    if isinstance(url, SqliteUrl):
        from .sqlite import SqliteBroker

        return SqliteBroker(url)
    from .rabbitmq import RabbitBroker

    return RabbitBroker(url)
