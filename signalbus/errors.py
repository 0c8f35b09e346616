"""The error tree. Imports no module of ours but the receipts that one error carries.

::

    SignalBusError
    ├── ConfigError                 the operator fixes the configuration
    │   └── NotPermitted            the broker refuses user, password or rights
    ├── InvalidSignal               the publisher fixes its call
    ├── DecodeError                 the data is poison: dead letter, never a retry
    ├── Unroutable                  no subscription matches
    ├── BrokerError                 may pass: try again
    │   ├── BrokerUnavailable       cannot be reached, or does not answer in time
    │   ├── Backpressure            reachable, but takes nothing more for now
    │   ├── PublishUnconfirmed      outcome unknown: repeat with the same id
    │   └── StorageError            the store refuses to work: full, damaged, not permitted
    ├── BatchError                  some signals of a batch were not stored
    ├── BusClosed                   used after ``aclose`` or before it is open
    └── Escalated                   a part of the bus failed again and again

    Retry, Reject                   raised by handlers; control flow, not errors
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from .receipts import Receipt


class SignalBusError(Exception):
    """Base of every error that signalbus raises."""


class ConfigError(SignalBusError):
    """Raised when a setting, pattern, handler or subscription cannot work as declared."""


class NotPermitted(ConfigError):
    """Raised when the broker refuses our user, its password, or what it may do."""


class InvalidSignal(SignalBusError):
    """Raised when a signal breaks a rule of CloudEvents or a limit of the bus; nothing was sent."""


class DecodeError(SignalBusError):
    """Raised when bytes that came from a broker are not a signal, or not the data a handler asked for."""


class Unroutable(SignalBusError):
    """Raised when no subscription matches a published signal, so that nobody would ever see it."""

    def __init__(self, signal_id: str, signal_type: str) -> None:
        super().__init__(
            f"no subscription matches {signal_type!r} (signal {signal_id}); nothing was stored. "
            "Start a subscriber for it once, or publish with unroutable='ignore' where having no audience is fine"
        )
        self.signal_id = signal_id
        self.signal_type = signal_type


class BrokerError(SignalBusError):
    """Base of the errors of a broker that may pass."""


class BrokerUnavailable(BrokerError):
    """Raised when the broker cannot be reached, or does not answer before the deadline."""


class Backpressure(BrokerError):
    """Raised when the broker takes no more signals for now (alarm, full queue, low disk) until the deadline."""


class PublishUnconfirmed(BrokerError):
    """Raised when no confirmation came before the deadline: the signal may or may not be stored.

    Publishing the same signal (same ``id``) again is safe: subscribers can recognise the duplicate.
    """

    def __init__(self, signal_id: str, reason: str) -> None:
        super().__init__(
            f"signal {signal_id} is not confirmed: {reason}. It may be stored or not; "
            "publish it again with the same id, which is safe"
        )
        self.signal_id = signal_id
        self.reason = reason


class StorageError(BrokerError):
    """Raised when the database file is full, damaged, locked by others for too long or not writable."""


class BatchError(SignalBusError):
    """Raised by ``publish_many`` when some signals of the batch were not stored.

    ``outcomes`` has one entry for each signal, in order: a receipt, or the error that publishing it
    alone would have raised.
    """

    def __init__(self, outcomes: Sequence[Receipt | SignalBusError]) -> None:
        failures = [outcome for outcome in outcomes if isinstance(outcome, SignalBusError)]
        super().__init__(
            f"{len(failures)} of {len(outcomes)} signals were not stored; the first: {failures[0]}. "
            "The attribute 'outcomes' has a receipt or an error for each, in order"
        )
        self.outcomes = tuple(outcomes)


class BusClosed(SignalBusError):
    """Raised when a bus is used while it is not open."""


class Escalated(SignalBusError):
    """Raised when a supervised part failed more often than its supervisor allows (3 times in 5 s)."""


class Retry(Exception):
    """Raised by a handler: deliver this signal again later; counts as an attempt, is not logged as an error.

    ``delay`` overrides the policy's delay for this attempt; ``None`` leaves it to the policy.
    """

    def __init__(self, reason: str = "the handler asked for a retry", *, delay: timedelta | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.delay = delay


class Reject(Exception):
    """Raised by a handler: give this delivery up now, as a dead letter with ``reason``."""

    def __init__(self, reason: str = "the handler rejected it") -> None:
        super().__init__(reason)
        self.reason = reason
