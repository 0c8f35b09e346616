"""The ledger: facts about every step of every signal, recorded cheaply and carried in batches. Pure.

Knows no broker and no store: who takes the batches is up to the caller. Telemetry never steers: nothing here raises on
the way of a signal, and what does not fit the bound is counted, not waited for.
"""

from .capture import Capture, CaptureMode, Payload
from .facts import (
    FAILED_STEPS,
    Accepted,
    Acked,
    Batch,
    Dead,
    Delivered,
    Fact,
    Level,
    Origin,
    Released,
    Replayed,
    Replied,
    ReplySide,
    Requested,
    Retried,
    SessionDown,
    SessionUp,
    SignalStep,
    Step,
    Unroutable,
)
from .recorder import LedgerSettings, Recorder, silent
from .wire import VERSION, LedgerError, MalformedBatch, NewerBatch, decode, encode, writable

__all__ = [
    "FAILED_STEPS",
    "VERSION",
    "Accepted",
    "Acked",
    "Batch",
    "Capture",
    "CaptureMode",
    "Dead",
    "Delivered",
    "Fact",
    "LedgerError",
    "LedgerSettings",
    "Level",
    "MalformedBatch",
    "NewerBatch",
    "Origin",
    "Payload",
    "Recorder",
    "Released",
    "Replayed",
    "Replied",
    "ReplySide",
    "Requested",
    "Retried",
    "SessionDown",
    "SessionUp",
    "SignalStep",
    "Step",
    "Unroutable",
    "decode",
    "encode",
    "silent",
    "writable",
]
