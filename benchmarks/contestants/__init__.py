"""Clients of RabbitMQ that do the same work: each in its own file, as its documentation shows it."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import cast

from .base import BlockingContestant, Contestant, Place
from .librabbitmq import missing

__all__ = ["BY_LOOP", "BlockingContestant", "Contestant", "Place", "absent", "contestant", "contestants"]

SIGNALBUS = "signalbus"
FASTSTREAM = "FastStream"
AIO_PIKA = "aio-pika"
TASKIQ = "taskiq-aio-pika"
DRAMATIQ = "Dramatiq"
CELERY = "Celery"
C_CLIENT = "C, librabbitmq"

# Name -> module here, class in it, and the package that it needs.
_CONTESTANTS = {
    SIGNALBUS: ("signalbus", "SignalBus", "signalbus"),
    FASTSTREAM: ("faststream", "FastStream", "faststream"),
    AIO_PIKA: ("plain_aio_pika", "PlainAioPika", "aio_pika"),
    TASKIQ: ("taskiq", "Taskiq", "taskiq_aio_pika"),
    DRAMATIQ: ("dramatiq", "Dramatiq", "dramatiq"),
    CELERY: ("celery", "Celery", "celery"),
    C_CLIENT: ("librabbitmq", "LibRabbitmq", "signalbus"),
}
#: Those with an event loop, so that they can publish and consume at the same time.
BY_LOOP = (SIGNALBUS, FASTSTREAM, AIO_PIKA, TASKIQ)


def absent() -> dict[str, str]:
    """Return those that cannot take part, and why."""
    found = {
        name: f"{package} is not installed"
        for name, (_, _, package) in _CONTESTANTS.items()
        if importlib.util.find_spec(package) is None
    }
    if reason := missing():
        found[C_CLIENT] = reason
    return found


def contestants() -> list[str]:
    """Return the names of those that can take part, signalbus first."""
    away = absent()
    return [name for name in _CONTESTANTS if name not in away]


def contestant(name: str, place: Place) -> Contestant | BlockingContestant:
    """Return a contestant; imports its library."""
    module, kind, _ = _CONTESTANTS[name]
    make = cast(
        "Callable[[Place], Contestant | BlockingContestant]",
        getattr(importlib.import_module(f"{__name__}.{module}"), kind),
    )
    return make(place)
