"""Ids as people give them: how they begin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from .failures import CommandError, Exit

T = TypeVar("T")

MIN_PREFIX = 6  # characters


def check_prefix(prefix: str, listing: str) -> str:
    """Return a prefix that may be looked for; ``listing`` is the command that shows ids. Raises `CommandError`."""
    if len(prefix.strip()) < MIN_PREFIX:
        raise CommandError(
            f"{prefix[:40]!a} is too short for an id; give at least {MIN_PREFIX} characters",
            code=Exit.USAGE,
            advice=listing,
        )
    return prefix.strip()


def the_one(found: Sequence[T], prefix: str, what: str, listing: str, described: Callable[[T], str]) -> T:
    """Return the only one of ``what`` that was found. Raises `CommandError`, with the candidates if several."""
    if not found:
        raise CommandError(
            f"no {what} is known whose id begins with {prefix[:80]!a}", code=Exit.NOT_FOUND, advice=listing
        )
    if len(found) > 1:
        candidates = ", ".join(map(described, found))
        raise CommandError(
            f"{prefix[:80]!a} stands for {len(found)} {what}s or more: {candidates}",
            code=Exit.NOT_FOUND,
            advice="give more characters of the id",
        )
    return found[0]
