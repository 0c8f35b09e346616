"""Glyphs and tones of states: one table for all templates. A tone is a class of the style sheet, never data."""

from __future__ import annotations

from ...deadletters import LetterState
from ...liveness import SubscriptionState
from ...trace.model import End, State
from ...trace.rendering import GLYPHS as TRACE_GLYPHS

GLYPHS: dict[str, str] = {
    **TRACE_GLYPHS,
    LetterState.WAITING: "…",
    LetterState.REPLAYING: "↺",
    LetterState.DISCARDED: "⊘",
    SubscriptionState.UP: "✓",
    SubscriptionState.BUSY: "▸",
    SubscriptionState.STALLED: "!",
    SubscriptionState.GONE: "✗",
}

TONES: dict[str, str] = {
    **dict.fromkeys((State.ACKED, State.REPLIED, SubscriptionState.UP), "good"),
    **dict.fromkeys((State.DEAD, State.FAILED, State.UNROUTABLE, SubscriptionState.GONE, End.LOST), "bad"),
    **dict.fromkeys((State.RETRYING, End.RETRIED, LetterState.REPLAYING, SubscriptionState.STALLED), "warn"),
    **dict.fromkeys((State.IN_HAND, End.RUNNING, SubscriptionState.BUSY), "busy"),
    **dict.fromkeys((State.WAITING, State.ASKED, LetterState.DISCARDED, End.RELEASED, End.UNKNOWN), "calm"),
}
