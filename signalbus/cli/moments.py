"""Times as options of commands."""

from __future__ import annotations

from ..moments import moment_of
from .failures import CommandError, Exit


def read_moment(text: str, option: str, now: float) -> float:
    """Return seconds since 1970. Raises `CommandError`."""
    try:
        return moment_of(text, now)
    except ValueError as error:
        raise CommandError(f"{option}: {error}", code=Exit.USAGE) from error
