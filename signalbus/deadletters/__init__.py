"""Dead letters: deliveries that were given up, kept with their history, to be understood and replayed.

`model` has the words and what a keeper of dead letters must do. The rest is what keepers have in common: tables
(`schema`), what is told by a death (`death`, `recording`), questions (`queries`), steps (`transitions`) with their
`audit`, and sending at a rate (`pace`, `sender`). Functions over a connection of the caller; no broker is known here.
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
