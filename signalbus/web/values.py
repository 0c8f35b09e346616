"""Values to JSON and back, the same on both sides. Knows no HTTP.

Bytes are base64, times RFC 3339, durations seconds; integers of any size survive. Text that is no Unicode (lone
surrogates) is replaced, and what a terminal would obey is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import orjson
from pydantic import ConfigDict, TypeAdapter

from ..brokers.base import QueueInfo
from ..deadletters import AuditEntry, Letter, LetterGroup, LetterPage, LetterSummary, Replay
from ..escapes import escape_json
from ..liveness import SubscriberSession, SubscriptionStatus
from ..trace.listing import Candidate

T = TypeVar("T")

_DELETE = b"\x7f"  # the one control character that JSON leaves as it is

#: How values are written. Members that are not known are ignored, so that a newer daemon can add some.
WIRE = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_timedelta="float")


class Shape(Generic[T]):
    """How values of one type are written and read.

    Its adapter is one of a tuple of one, as pydantic takes no configuration for a dataclass by itself.
    """

    def __init__(self, adapter: TypeAdapter[tuple[T]]) -> None:
        self.adapter = adapter

    def dump(self, value: T) -> object:
        """Return a value as plain data."""
        plain: list[object] = self.adapter.dump_python((value,), mode="json")
        return plain[0]

    def load(self, body: bytes) -> T:
        """Return the value of a JSON text. Raises `pydantic.ValidationError`."""
        return self.adapter.validate_json(b"[" + body + b"]")[0]


class Plain:
    """What is plain data already, of which an adapter only tells how it looks."""

    def __init__(self, adapter: TypeAdapter[Any]) -> None:
        self.adapter = adapter

    def dump(self, value: Mapping[str, object]) -> object:
        """Return it as it is."""
        return value


def written(plain: object) -> bytes:
    """Return plain data as JSON on one line."""
    try:
        body = orjson.dumps(plain)  # twenty times as fast, which counts for a dead letter of some megabytes
    except TypeError:  # integers beyond 64 bits, or text that is no Unicode
        text = json.dumps(plain, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        body = text.encode("utf-8", "replace")
    if body.isascii() and _DELETE not in body:
        return body
    return escape_json(body.decode()).encode()


AUDIT = Shape(TypeAdapter(tuple[Sequence[AuditEntry]], config=WIRE))
CANDIDATES = Shape(TypeAdapter(tuple[Sequence[Candidate]], config=WIRE))
GROUPS = Shape(TypeAdapter(tuple[Sequence[LetterGroup]], config=WIRE))
LETTER = Shape(TypeAdapter(tuple[Letter], config=WIRE))
LETTERS = Shape(TypeAdapter(tuple[Sequence[LetterSummary]], config=WIRE))
LETTER_PAGE = Shape(TypeAdapter(tuple[LetterPage], config=WIRE))
QUEUES = Shape(TypeAdapter(tuple[Sequence[QueueInfo]], config=WIRE))
REPLAY = Shape(TypeAdapter(tuple[Replay], config=WIRE))
REPLAYS = Shape(TypeAdapter(tuple[Sequence[Replay]], config=WIRE))
SESSIONS = Shape(TypeAdapter(tuple[Sequence[SubscriberSession]], config=WIRE))
SUBSCRIBERS = Shape(TypeAdapter(tuple[Sequence[SubscriptionStatus]], config=WIRE))
