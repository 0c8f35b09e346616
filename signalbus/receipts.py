"""What a publisher gets back. Imports nothing of ours."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """Proof that a signal is stored. ``routed`` is False only if nobody subscribes and that was allowed.

    ``attempts`` counts the sends it took; above 1, subscribers may see a duplicate with the same ``id``.
    """

    id: str
    type: str
    stored_at: datetime
    routed: bool = True
    attempts: int = 1
