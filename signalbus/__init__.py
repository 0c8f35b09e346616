"""signalbus: a signal router with guaranteed delivery."""

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
