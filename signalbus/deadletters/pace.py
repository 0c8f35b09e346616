"""How fast a replay sends: small batches at even intervals, so that no second has more than its rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import ConfigError

MAX_RATE = 10_000.0
_BATCHES = 10  # a second, or the letters one by one if they are fewer
_MAX_BATCH = 100  # of one transaction


@dataclass(frozen=True, slots=True)
class Pace:
    """``batch`` dead letters each ``seconds``."""

    batch: int
    seconds: float


def pace_of(rate: float) -> Pace:
    """Return the pace of a rate a second. Raises `ConfigError` for one that is not between 0 and 10,000."""
    if not (math.isfinite(rate) and 0.0 < rate <= MAX_RATE):
        raise ConfigError(f"rate is {rate!r}; it must be more than 0 and at most {MAX_RATE:g} a second")
    batch = min(max(int(rate / _BATCHES), 1), _MAX_BATCH)
    return Pace(batch, batch / rate)
