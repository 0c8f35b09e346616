"""Words, glyphs and measures that all renderings share. Pure; everything from outside is escaped."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime

from ..escapes import escape
from ..ledger import Origin
from .model import Attempt, End, State

GLYPHS: dict[str, str] = {
    State.WAITING: "…",
    State.IN_HAND: "▶",
    State.RETRYING: "↻",
    State.ACKED: "✓",
    State.DEAD: "✗",
    State.UNROUTABLE: "∅",
    State.ASKED: "…",
    State.REPLIED: "✓",
    State.FAILED: "✗",
    End.RUNNING: "▶",
    End.RETRIED: "↻",
    End.RELEASED: "↩",
    End.LOST: "↯",
    End.UNKNOWN: "?",
}
_SHORT_START, _SHORT_END = 6, 3  # characters of an id
_SHORT_FROM = 16


def state_words(state: State | End) -> str:
    """Return a state as a glyph and a word."""
    return f"{GLYPHS[state]} {state.value}"


def duration(seconds: float | None) -> str:
    """Return a duration with three digits at most, ``1.05 s``; nothing for none."""
    if seconds is None:
        return ""
    seconds = max(seconds, 0.0)
    if seconds < 0.0009995:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    if seconds < 3_600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    if seconds < 172_800:
        return f"{int(seconds // 3_600)} h {int(seconds % 3_600 // 60)} min"
    return f"{int(seconds // 86_400)} days"


def moment(at: float | None) -> datetime | None:
    """Return a time, or None if no calendar has it."""
    if at is None:
        return None
    try:
        return datetime.fromtimestamp(at, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def clock(at: float | None, *, date: bool = False) -> str:
    """Return the time of day in UTC, to the millisecond."""
    time = moment(at)
    if time is None:
        return ""
    return time.strftime("%Y-%m-%d %H:%M:%S.%f" if date else "%H:%M:%S.%f")[:-3] + (" UTC" if date else "")


def short_id(signal: str) -> str:
    """Return the two ends of an id, which `queries.find` understands."""
    shown = escape(signal)
    return shown if len(shown) <= _SHORT_FROM else f"{shown[:_SHORT_START]}…{shown[-_SHORT_END:]}"


def who(origin: Origin | None) -> str:
    """Return who told, ``billing@web-1 (pid 812)``."""
    if origin is None:
        return ""
    name = escape(origin.name or origin.session)
    host = f"@{escape(origin.host)}" if origin.host else ""
    return f"{name}{host}" + (f" (pid {origin.pid})" if origin.pid else "")


def inferred(attempt: Attempt) -> str:
    """Return what of an attempt nobody told, in words."""
    missing = " and ".join(attempt.inferred)
    return f"({missing} inferred)" if missing else ""


def columns(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def padded(text: str, width: int) -> str:
    """Fill a text up to a width."""
    return text + " " * max(width - columns(text), 0)


def clipped(text: str, width: int | None) -> str:
    """Cut a line to a width, if there is one."""
    if width is None or columns(text) <= width:
        return text
    used = 1  # for the mark
    for index, character in enumerate(text):
        used += columns(character)
        if used > width:
            return text[:index].rstrip() + "…"
    return text
