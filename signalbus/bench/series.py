"""A series of calls or deliveries, and what it says: how many a second, how long each took, what they cost. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """``seconds`` by the clock, ``cpu_seconds`` of processor time of this process; ``times`` of each, in seconds."""

    name: str
    title: str
    count: int
    seconds: float
    cpu_seconds: float
    times: Sequence[float] = field(default=(), repr=False)
    steady: bool = False  # at a rate that was chosen, which says nothing

    @property
    def rate(self) -> float | None:
        """How many a second; None for a series whose rate was chosen."""
        return None if self.steady or self.seconds <= 0 else self.count / self.seconds

    @property
    def cpu_microseconds(self) -> float:
        """Processor time of each, in microseconds."""
        return 1e6 * self.cpu_seconds / self.count if self.count else 0.0

    def milliseconds(self, share: float) -> float | None:
        """Return the time that ``share`` of them did not exceed; None if their times were not taken."""
        if not self.times:
            return None
        ordered = sorted(self.times)
        return 1000 * ordered[min(int(share * len(ordered)), len(ordered) - 1)]

    def fields(self) -> dict[str, object]:
        """Return it as JSON data."""
        shares = {"p50_ms": 0.5, "p99_ms": 0.99, "p999_ms": 0.999}
        return {
            "name": self.name,
            "title": self.title,
            "count": self.count,
            "per_second": self.rate,
            "cpu_us": self.cpu_microseconds,
            **{name: self.milliseconds(share) for name, share in shares.items()},
        }
