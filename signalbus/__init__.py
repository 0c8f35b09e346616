"""signalbus: a signal router with guaranteed delivery.

Names are imported when they are first used: the command line's ``--help`` should not wait for pydantic.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .bus import Bus, BusStats
    from .delivery import Failure
    from .errors import (
        Backpressure,
        BatchError,
        BrokerError,
        BrokerUnavailable,
        BusClosed,
        ConfigError,
        DecodeError,
        Escalated,
        InvalidSignal,
        NotPermitted,
        PublishUnconfirmed,
        Reject,
        Retry,
        SignalBusError,
        StorageError,
        Unroutable,
    )
    from .handlers import Delivery
    from .policy import RetryPolicy
    from .receipts import Receipt
    from .signals import Signal
    from .subscriber import SubscriptionStats
    from .subscription import Subscription

__all__ = [
    "Backpressure",
    "BatchError",
    "BrokerError",
    "BrokerUnavailable",
    "Bus",
    "BusClosed",
    "BusStats",
    "ConfigError",
    "DecodeError",
    "Delivery",
    "Escalated",
    "Failure",
    "InvalidSignal",
    "NotPermitted",
    "PublishUnconfirmed",
    "Receipt",
    "Reject",
    "Retry",
    "RetryPolicy",
    "Signal",
    "SignalBusError",
    "StorageError",
    "Subscription",
    "SubscriptionStats",
    "Unroutable",
]

#: The module of each public name that is not an error.
_HOMES = {
    "Bus": "bus",
    "BusStats": "bus",
    "Delivery": "handlers",
    "Failure": "delivery",
    "Receipt": "receipts",
    "RetryPolicy": "policy",
    "Signal": "signals",
    "Subscription": "subscription",
    "SubscriptionStats": "subscriber",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES.get(name, 'errors')}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
