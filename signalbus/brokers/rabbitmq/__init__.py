"""RabbitMQ, 3.10 to 4.x: the only package that knows aio-pika, aiormq and pamqp."""

from __future__ import annotations

from .broker import RabbitBroker

__all__ = ["RabbitBroker"]
