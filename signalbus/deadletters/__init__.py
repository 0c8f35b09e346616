"""Dead letters: deliveries that were given up, kept with their history, to be understood and replayed.

`model` has the words and what a keeper of dead letters must do; it knows no broker and no store.
"""

from .model import (
    AuditEntry,
    DeadLetters,
    Letter,
    LetterGroup,
    LetterPage,
    LetterQuery,
    LetterState,
    LetterSummary,
    Replay,
)

__all__ = [
    "AuditEntry",
    "DeadLetters",
    "Letter",
    "LetterGroup",
    "LetterPage",
    "LetterQuery",
    "LetterState",
    "LetterSummary",
    "Replay",
]
