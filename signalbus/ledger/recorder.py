"""Recording facts on the way of a signal: one tuple, appended to a bounded buffer.

Measured: `tests/test_ledger.py` holds it below one microsecond a fact. Payloads are read when a batch is taken.
Append from one thread and take from one thread; the two may differ.
"""

from __future__ import annotations

import secrets
import time
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ..errors import ConfigError
from ..sessions import Down, SessionInfo
from .capture import Capture, Payload
from .facts import FIELDS, Accepted, Batch, Level, Origin, ReplySide, Requested, Row, Unroutable

# The position of the captured payload in a row; whether it was cut follows.
_DATA = {step.kind: FIELDS[step.kind].index("data") + 2 for step in (Accepted, Unroutable, Requested)}
_PAYLOAD_BYTES = 4 << 20  # that wait; beyond it a batch holds a few facts only, as it has to fit into one message
_FEW = 8
_ANSWERED = "reply"  # the outcome of a request that is no failure


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerSettings:
    """What is recorded, and how much may wait.

    ``share`` of the signals, chosen by their ids, so that all recorders choose the same ones; of the others only
    failures are told. ``capacity`` facts and ``payload_bytes`` of payloads may wait to be taken; beyond that facts
    are dropped, or payloads left out, and counted.
    """

    level: Level = Level.ALL
    share: float = 1.0
    capacity: int = 100_000
    payload_bytes: int = 64 << 20
    capture: Capture = field(default_factory=Capture)

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise ConfigError(f"share is {self.share}; it must be from 0 (no signal) to 1 (all of them)")
        if self.capacity < 1:
            raise ConfigError(f"capacity is {self.capacity}; it must be at least 1 fact")


class Recorder:
    """Facts of one bus, waiting to be taken. Nothing here waits, and nothing raises on the way of a signal."""

    def __init__(
        self,
        session: SessionInfo | None = None,
        settings: LedgerSettings | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Begin to record; without a session, nothing can be taken before `session_up` says whose facts they are."""
        self.settings = settings or LedgerSettings()
        self.dropped = 0
        self.payloads_left_out = 0
        self.stirred: Callable[[], None] = _nobody  # called when the first of the facts that wait is told
        self._id = secrets.token_hex(8)
        self._clock = clock
        self._buffer: deque[Row] = deque()
        self._appended = 0  # facts so far, dropped ones left out
        self._taken = 0
        self._payload_bytes = 0
        self._sessions: deque[tuple[int, Origin]] = deque()
        if session is not None:
            self._sessions.append((0, self._origin(session)))
        self._off = self.settings.level is Level.OFF
        self._everything = self.settings.level is Level.ALL and self.settings.share >= 1.0
        self._threshold = int(self.settings.share * 2**32) if self.settings.level is Level.ALL else 0
        self._capacity = self.settings.capacity

    def __len__(self) -> int:
        """How many facts wait."""
        return len(self._buffer)

    def tells(self, signal: str) -> bool:
        """Tell whether what goes well with a signal is recorded: who asks first saves putting a fact together."""
        return self._everything or self._chosen(signal)

    # Publishers

    def accepted(
        self,
        signal: str,
        type: str,  # noqa: A002 - the attribute's name
        source: str,
        subject: str | None = None,
        time: str | None = None,
        correlationid: str | None = None,
        causationid: str | None = None,
        traceparent: str | None = None,
        subscriptions: tuple[str, ...] | None = None,
        payload: Payload | None = None,
        attempts: int = 1,
        seconds: float | None = None,
    ) -> None:
        """Tell that a signal is stored."""
        if self._everything or self._chosen(signal):
            room = None if payload is None else self._room(payload)
            at, cause = self._clock(), causationid
            # fmt: off
            self._append((
                "accepted", at, signal, type, source, subject, time, correlationid, cause, traceparent,
                subscriptions, room, False, attempts, seconds,
            ))
            # fmt: on

    def unroutable(
        self,
        signal: str,
        type: str,  # noqa: A002 - the attribute's name
        source: str,
        subject: str | None = None,
        time: str | None = None,
        correlationid: str | None = None,
        causationid: str | None = None,
        traceparent: str | None = None,
        payload: Payload | None = None,
    ) -> None:
        """Tell that a signal has no audience."""
        if not self._off:
            self._append(
                (
                    "unroutable",
                    self._clock(),
                    signal,
                    type,
                    source,
                    subject,
                    time,
                    correlationid,
                    causationid,
                    traceparent,
                    payload and self._room(payload),
                    False,
                )
            )

    def requested(
        self,
        signal: str,
        type: str,  # noqa: A002 - the attribute's name
        source: str,
        subject: str | None = None,
        time: str | None = None,
        correlationid: str | None = None,
        causationid: str | None = None,
        traceparent: str | None = None,
        payload: Payload | None = None,
        timeout: float | None = None,
    ) -> None:
        """Tell that a request was sent."""
        if self._everything or self._chosen(signal):
            self._append(
                (
                    "requested",
                    self._clock(),
                    signal,
                    type,
                    source,
                    subject,
                    time,
                    correlationid,
                    causationid,
                    traceparent,
                    payload and self._room(payload),
                    False,
                    timeout,
                )
            )

    def replied(
        self,
        signal: str,
        type: str,  # noqa: A002 - the attribute's name
        side: ReplySide,
        outcome: str,
        seconds: float | None = None,
        error: str = "",
        message: str = "",
        responder: str = "",
    ) -> None:
        """Tell how a request ended."""
        if self._everything or self._chosen(signal, outcome != _ANSWERED):
            at = self._clock()
            self._append(("replied", at, signal, type, side.value, outcome, seconds, error, message, responder))

    # Subscribers

    def delivered(
        self,
        signal: str,
        type: str,  # noqa: A002 - the attribute's name
        subscription: str,
        attempt: int,
        crashes: int = 0,
        queued: float | None = None,
        causationid: str | None = None,
    ) -> None:
        """Tell that a handler begins."""
        if self._everything or self._chosen(signal, crashes > 0):
            at = self._clock()
            self._append(("delivered", at, signal, type, subscription, attempt, crashes, queued, causationid))

    def acked(
        self,
        signal: str,
        type: str,  # noqa: A002 - the attribute's name
        subscription: str,
        attempt: int,
        crashes: int = 0,
        seconds: float | None = None,
    ) -> None:
        """Tell that a delivery is done; at level ``failures`` only where that ends one."""
        if self._everything or self._chosen(signal, attempt > 1 or crashes > 0):
            self._append(("acked", self._clock(), signal, type, subscription, attempt, crashes, seconds))

    def retried(
        self,
        signal: str,
        type: str,  # noqa: A002 - the attribute's name
        subscription: str,
        attempt: int,
        crashes: int = 0,
        seconds: float | None = None,
        error: str = "",
        message: str = "",
        delay: float | None = None,
    ) -> None:
        """Tell that an attempt failed and another one follows."""
        if not self._off:
            self._append(
                ("retried", self._clock(), signal, type, subscription, attempt, crashes, seconds, error, message, delay)
            )

    def dead(
        self,
        signal: str,
        type: str,  # noqa: A002 - the attribute's name
        subscription: str,
        attempt: int,
        crashes: int = 0,
        seconds: float | None = None,
        reason: str = "",
        detail: str = "",
        error: str = "",
    ) -> None:
        """Tell that a delivery was given up."""
        if not self._off:
            self._append(
                ("dead", self._clock(), signal, type, subscription, attempt, crashes, seconds, reason, detail, error)
            )

    def released(
        self,
        signal: str,
        type: str,  # noqa: A002 - the attribute's name
        subscription: str,
        attempt: int,
        crashes: int = 0,
        reason: str = "",
    ) -> None:
        """Tell that a delivery was given back untouched."""
        if self._everything or self._chosen(signal, crashes > 0):
            self._append(("released", self._clock(), signal, type, subscription, attempt, crashes, reason))

    def replayed(self, signal: str, type: str, subscription: str, by: str = "") -> None:  # noqa: A002
        """Tell that a dead letter went back to its subscription."""
        if not self._off:
            self._append(("replayed", self._clock(), signal, type, subscription, by))

    # Sessions

    def session_up(self, session: SessionInfo) -> None:
        """Tell that this session is connected; facts told from here on are its own."""
        origin = self._origin(session)
        if not self._sessions or origin != self._sessions[-1][1]:
            self._sessions.append((self._appended, origin))
        if not self._off:
            at = self._clock()
            self._append(("session_up", at, session.id, session.name, session.host, session.pid, session.version))

    def session_down(self, down: Down) -> None:
        """Tell that a session ended."""
        if not self._off:
            row = ("session_down", self._clock(), down.session, down.reason.value, down.name, down.unsettled)
            self._append(row)

    # The way out

    def payload(self, body: bytes, content_type: str | None, data: object = None) -> Payload | None:
        """Return a payload for a fact, as far as payloads are captured; see `Capture.payload`."""
        return None if self._off else self.settings.capture.payload(body, content_type, data)

    def take(self, limit: int) -> Batch | None:
        """Remove up to ``limit`` facts and return them, oldest first; None if there are none.

        The caller owns the batch: it can store or send it as often as it takes.
        """
        while len(self._sessions) > 1 and self._sessions[1][0] <= self._taken:
            self._sessions.popleft()
        count = min(limit, len(self._buffer))
        if len(self._sessions) > 1:
            count = min(count, self._sessions[1][0] - self._taken)
        if count <= 0 or not self._sessions:
            return None
        if self._payload_bytes > _PAYLOAD_BYTES:
            count = min(count, _FEW)
        popleft = self._buffer.popleft
        rows = [popleft() for _ in range(count)]
        first, self._taken = self._taken + 1, self._taken + count
        if self._payload_bytes:
            rows = [self._ready(row) for row in rows]
        return Batch(origin=self._sessions[0][1], first=first, rows=rows, dropped=self.dropped)

    # Inside

    def _append(self, row: Row) -> None:
        waiting = len(self._buffer)
        if waiting >= self._capacity:
            self.dropped += 1
            return
        self._buffer.append(row)
        self._appended += 1
        if waiting == 0:
            self.stirred()

    def _chosen(self, signal: str, failure: bool = False) -> bool:
        """Whether a fact is told, where not everything is."""
        if self._off:
            return False
        return failure or (self._threshold > 0 and zlib.crc32(signal.encode("utf-8", "replace")) < self._threshold)

    def _room(self, payload: Payload) -> Payload | None:
        if self._payload_bytes + len(payload.body) > self.settings.payload_bytes:
            self.payloads_left_out += 1
            return None
        self._payload_bytes += len(payload.body)
        return payload

    def _ready(self, row: Row) -> Row:
        """Read the payload that a row holds, if it does."""
        position = _DATA.get(row[0]) if isinstance(row[0], str) else None
        if position is None or not isinstance(payload := row[position], Payload):
            return row
        self._payload_bytes -= len(payload.body)
        return (*row[:position], *self.settings.capture.read(payload), *row[position + 2 :])

    def _origin(self, session: SessionInfo) -> Origin:
        return Origin(
            recorder=self._id,
            session=session.id,
            name=session.name,
            host=session.host,
            pid=session.pid,
            level=self.settings.level.value,
            share=self.settings.share,
        )


def silent() -> Recorder:
    """Return a recorder that tells nothing."""
    return Recorder(None, LedgerSettings(level=Level.OFF))


def _nobody() -> None:
    """Wait for nobody to take what is told."""
