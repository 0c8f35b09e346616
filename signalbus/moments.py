"""Times as people write and read them: ``15m`` ago, ``2h``, ``3d``, or RFC 3339. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_UNITS = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0}
_AGO = re.compile(r"(\d{1,12}(?:\.\d{1,12})?)([smhdw])")


def rfc3339(time: datetime) -> str:
    """Return a time in UTC, ``2026-01-31T12:00:00Z``."""
    return time.isoformat().replace("+00:00", "Z")


def moment_of(text: str, now: float) -> float:
    """Return seconds since 1970. A time without a zone is UTC. Raises `ValueError` that says what may be written."""
    if (match := _AGO.fullmatch(text.strip())) is not None:
        return now - float(match[1]) * _UNITS[match[2]]
    try:
        moment = datetime.fromisoformat(text.strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{text[:80]!a} is no time; write 15m, 2h or 3d ago, or 2026-01-31T12:00:00Z") from error
