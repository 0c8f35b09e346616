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
    ├── NotSettled                  stored, but not settled by every subscription in time
    ├── AudienceMismatch            other subscriptions match than were expected; nothing was sent
    ├── RequestError                a request that has no reply
    │   ├── NoResponder             nobody responds to its type; not run
    │   ├── Overloaded              too many requests wait already; not run
    │   ├── RemoteError             its handler raised
    │   ├── ResponderDown           its responder died while it had it; may have run
    │   ├── ReplyLost               our own connection was lost; may have run
    │   └── RequestTimeout          no reply before the deadline; may have run
    ├── MonitorCancelled            a monitor is awaited that was cancelled
    ├── BusClosed                   used after ``aclose`` or before it is open
    └── Escalated                   a part of the bus failed again and again

    Retry, Reject                   raised by handlers; control flow, not errors
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from .receipts import Outcome, Receipt


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


class NotSettled(SignalBusError):
    """Raised by ``publish(until="acked")`` when some subscription has not settled the signal before the deadline.

    The signal is stored. ``receipt.subscriptions`` says what is known of each; ``pending`` means only that: not yet
    known to be settled.
    """

    def __init__(self, receipt: Receipt, timeout: float) -> None:
        pending = [each.subscription for each in receipt.subscriptions if each.outcome is Outcome.PENDING]
        super().__init__(
            f"signal {receipt.id} is stored, but not settled within {timeout:g} s by {', '.join(pending)}; "
            "it goes on by itself, so do not publish it again. 'signalbus subscribers' shows who serves them"
        )
        self.receipt = receipt


class AudienceMismatch(SignalBusError):
    """Raised by ``publish(expect=...)`` when another number of subscriptions matches; nothing was sent.

    ``actual`` names those that match.
    """

    def __init__(self, signal_type: str, expected: int, actual: Sequence[str]) -> None:
        super().__init__(
            f"{len(actual)} subscriptions match {signal_type!r}, not {expected}: {', '.join(actual) or 'none'}; "
            "nothing was sent. 'signalbus subscribers' lists them"
        )
        self.expected = expected
        self.actual = tuple(actual)


class RequestError(SignalBusError):
    """Base of the errors of a request. ``request_type`` is its type, ``request_id`` the id it was sent with."""

    def __init__(self, request_id: str, request_type: str, message: str) -> None:
        super().__init__(message)
        self.request_id = request_id
        self.request_type = request_type


class NoResponder(RequestError):
    """Raised at once when nobody responds to the type of a request; nothing has run."""


class Overloaded(RequestError):
    """Raised at once when more requests wait for the responders than they take; this one has not run."""


class ResponderDown(RequestError):
    """Raised when the responder died while it had the request: it may have run, in whole or in part."""


class ReplyLost(RequestError):
    """Raised when the requester's own connection to the broker was lost: the request may have run."""


class RequestTimeout(RequestError):
    """Raised when no reply came before the deadline: the request may have run, or run still."""


class RemoteError(RequestError):
    """Raised when the handler of the request raised; ``type``, ``message`` and ``traceback`` are texts of its error."""

    def __init__(
        self,
        request_id: str,
        request_type: str,
        *,
        type: str,  # noqa: A002 - the word for it, also in Python
        message: str,
        traceback: str,
        session: str,
    ) -> None:
        super().__init__(request_id, request_type, f"{request_type}: its responder raised {type}: {message}")
        self.type = type
        self.message = message
        self.traceback = traceback
        self.session = session


class MonitorCancelled(SignalBusError):
    """Raised by awaiting the ``down`` of a monitor that was cancelled, or whose bus was closed."""


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
