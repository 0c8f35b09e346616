"""signalbus: a signal router with guaranteed delivery.

Names are imported when they are first used: the command line's ``--help`` should not wait for pydantic.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .bus import (
        Bus,
        BusStats,
    )
    from .children import (
        ChildError,
        ChildInfo,
        ChildSpec,
        ChildState,
        Restart,
    )
    from .delivery import (
        Failure,
    )
    from .errors import (
        AudienceMismatch,
        Backpressure,
        BatchError,
        BrokerError,
        BrokerUnavailable,
        BusClosed,
        ConfigError,
        DecodeError,
        Escalated,
        InvalidSignal,
        MonitorCancelled,
        NoResponder,
        NotPermitted,
        NotSettled,
        Overloaded,
        PublishUnconfirmed,
        Reject,
        RemoteError,
        ReplyLost,
        RequestError,
        RequestTimeout,
        ResponderDown,
        Retry,
        SignalBusError,
        StorageError,
        Unroutable,
    )
    from .handlers import (
        Delivery,
    )
    from .liveness import (
        Monitor,
        SubscriberSession,
        SubscriptionState,
        SubscriptionStatus,
    )
    from .policy import (
        RetryPolicy,
    )
    from .receipts import (
        Outcome,
        Receipt,
        SubscriptionOutcome,
    )
    from .requests import (
        RequesterStats,
    )
    from .responder import (
        Endpoint,
        ResponderStats,
    )
    from .sessions import (
        Down,
        DownReason,
        SessionInfo,
    )
    from .signals import (
        Signal,
    )
    from .subscriber import (
        SubscriptionStats,
    )
    from .subscription import (
        Subscription,
    )
    from .supervision import (
        Strategy,
        Supervisor,
    )

__all__ = [
    "AudienceMismatch",
    "Backpressure",
    "BatchError",
    "BrokerError",
    "BrokerUnavailable",
    "Bus",
    "BusClosed",
    "BusStats",
    "ChildError",
    "ChildInfo",
    "ChildSpec",
    "ChildState",
    "ConfigError",
    "DecodeError",
    "Delivery",
    "Down",
    "DownReason",
    "Endpoint",
    "Escalated",
    "Failure",
    "InvalidSignal",
    "Monitor",
    "MonitorCancelled",
    "NoResponder",
    "NotPermitted",
    "NotSettled",
    "Outcome",
    "Overloaded",
    "PublishUnconfirmed",
    "Receipt",
    "Reject",
    "RemoteError",
    "ReplyLost",
    "RequestError",
    "RequestTimeout",
    "RequesterStats",
    "ResponderDown",
    "ResponderStats",
    "Restart",
    "Retry",
    "RetryPolicy",
    "SessionInfo",
    "Signal",
    "SignalBusError",
    "StorageError",
    "Strategy",
    "SubscriberSession",
    "Subscription",
    "SubscriptionOutcome",
    "SubscriptionState",
    "SubscriptionStats",
    "SubscriptionStatus",
    "Supervisor",
    "Unroutable",
]

#: The module of each public name that is not an error.
_HOMES = {
    "Bus": "bus",
    "BusStats": "bus",
    "ChildError": "children",
    "ChildInfo": "children",
    "ChildSpec": "children",
    "ChildState": "children",
    "Delivery": "handlers",
    "Down": "sessions",
    "DownReason": "sessions",
    "Endpoint": "responder",
    "Failure": "delivery",
    "Monitor": "liveness",
    "Outcome": "receipts",
    "Receipt": "receipts",
    "RequesterStats": "requests",
    "ResponderStats": "responder",
    "Restart": "children",
    "RetryPolicy": "policy",
    "SessionInfo": "sessions",
    "Signal": "signals",
    "Strategy": "supervision",
    "SubscriberSession": "liveness",
    "Subscription": "subscription",
    "SubscriptionOutcome": "receipts",
    "SubscriptionState": "liveness",
    "SubscriptionStats": "subscriber",
    "SubscriptionStatus": "liveness",
    "Supervisor": "supervision",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES.get(name, 'errors')}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
