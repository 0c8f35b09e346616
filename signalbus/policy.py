"""When to try again, and how often: the retry policy. Pure.

Exponential backoff with full jitter, as in "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015):
the delay is drawn evenly between zero and the cap of that attempt, which spreads out a crowd of retries best.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from .errors import ConfigError

NO_RULES: Mapping[type[BaseException], RetryPolicy] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How failed deliveries of a subscription are retried.

    ``max_attempts`` counts every run of the handler, the first one included; 1 means no retry.
    The delay after attempt *n* is at most ``initial * multiplier ** (n - 1)``, and never more than ``max_delay``;
    with ``jitter`` it is drawn evenly between zero and that. Exceptions in ``never`` become dead letters at once.
    ``rules`` gives exception types a policy of their own; the most derived type wins.
    """

    max_attempts: int = 5
    initial: timedelta = timedelta(seconds=1)
    multiplier: float = 2.0
    max_delay: timedelta = timedelta(minutes=10)
    jitter: bool = True
    never: tuple[type[BaseException], ...] = ()
    rules: Mapping[type[BaseException], RetryPolicy] = field(default_factory=lambda: NO_RULES)

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ConfigError(f"RetryPolicy.max_attempts is {self.max_attempts}; it must be at least 1")
        if self.initial < timedelta(0):
            raise ConfigError(f"RetryPolicy.initial is {self.initial}; it must not be negative")
        if self.max_delay < timedelta(0):
            raise ConfigError(f"RetryPolicy.max_delay is {self.max_delay}; it must not be negative")
        if not self.multiplier >= 1:
            raise ConfigError(f"RetryPolicy.multiplier is {self.multiplier}; it must be at least 1")

    def for_error(self, error_type: type[BaseException]) -> RetryPolicy:
        """Return the policy for an exception type: the rule of the nearest base class, else this policy."""
        for base in error_type.__mro__:
            if base in self.rules:
                return self.rules[base]
        return self

    def gives_up_on(self, error_type: type[BaseException]) -> bool:
        """Tell whether an exception type is never retried."""
        return issubclass(error_type, self.never)

    def delay_after(self, attempt: int, random: float) -> timedelta:
        """Return the delay after failed attempt ``attempt`` (from 1); ``random`` is in [0, 1)."""
        if not self.initial:
            return self.initial
        try:
            grown = self.initial.total_seconds() * self.multiplier ** (attempt - 1)
        except OverflowError:
            grown = float("inf")
        seconds = min(grown, self.max_delay.total_seconds())
        return timedelta(seconds=seconds * random if self.jitter else seconds)
