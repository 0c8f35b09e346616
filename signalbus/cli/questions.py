"""Questions to whoever sits there."""

from __future__ import annotations

import sys

from ..escapes import escape
from .failures import CommandError, Exit
from .options import Options


def ask(question: str, options: Options, *, otherwise: str) -> None:
    """Ask, unless ``--yes`` has answered. Raises `CommandError` where nobody sits, and after a no.

    ``otherwise``: what to do where nobody can be asked.
    """
    if options.yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise CommandError(f"{question} Nobody can be asked here", code=Exit.USAGE, advice=otherwise)
    print(f"{escape(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CommandError("nothing was changed", code=Exit.FAILED, advice="")
