"""Times as people write them: ``15m`` ago, ``2h``, ``3d``, or RFC 3339. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from .failures import CommandError, Exit

_UNITS = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0}
_AGO = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")


def read_moment(text: str, option: str, now: float) -> float:
    """Return seconds since 1970. A time without a zone is UTC. Raises `CommandError`."""
    if (match := _AGO.fullmatch(text.strip())) is not None:
        return now - float(match[1]) * _UNITS[match[2]]
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise CommandError(
            f"{option} is {text[:80]!a}, no time; write 15m, 2h or 3d ago, or 2026-01-31T12:00:00Z", code=Exit.USAGE
        ) from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
