"""Where output goes: data to stdout, everything else to stderr; colour and animation only for people who watch."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from typing import TYPE_CHECKING, TextIO

from ..escapes import escape, escape_json
from .failures import SCHEMA_VERSION

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from .options import Options

WIDE = 10_000  # columns where nobody watches: nothing is cut or wrapped


class Output:
    """What a command prints, by the options it was given."""

    def __init__(self, options: Options) -> None:
        self._options = options

    def line(self, text: str) -> None:
        """Print a line of data for people."""
        print(text, flush=True)

    def json(self, **fields: object) -> None:
        """Print one JSON object on a line of its own."""
        text = json.dumps({"schema_version": SCHEMA_VERSION, **fields}, ensure_ascii=False, default=str)
        print(escape_json(text), flush=True)

    def note(self, text: str) -> None:
        """Tell people on stderr; silent with ``-q``."""
        if not self._options.quiet:
            say(escape(text))

    def warn(self, text: str) -> None:
        """Tell people on stderr, also with ``-q``."""
        say(f"signalbus: {escape(text)}")

    def table(self, table: Table) -> None:
        """Print a table of data."""
        self.console().print(table)

    def console(self, *, stderr: bool = False) -> Console:
        """Return a rich console. It honours NO_COLOR, FORCE_COLOR and COLUMNS itself."""
        from rich.console import Console

        watched = (sys.stderr if stderr else sys.stdout).isatty()
        width = None if watched or os.environ.get("COLUMNS") else WIDE
        no_color = True if self._options.no_color else None
        return Console(stderr=stderr, no_color=no_color, width=width, highlight=False, markup=False, emoji=False)

    @property
    def watched(self) -> bool:
        """Whether data goes to a terminal."""
        return sys.stdout.isatty()

    @property
    def animated(self) -> bool:
        """Whether progress may move on stderr."""
        return sys.stderr.isatty() and not self._options.quiet and os.environ.get("TERM") != "dumb"


def say(text: str) -> None:
    """Print to stderr. That its reader has gone must neither stop the work nor keep it from ending."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def log_to_stderr(options: Options, *, usual: int = logging.CRITICAL) -> None:
    """Send the log to stderr: ``usual`` and above, with ``-v`` everything from INFO, with ``-q`` errors."""
    level = logging.INFO if options.verbose else max(usual, logging.ERROR) if options.quiet else usual
    handler = logging.StreamHandler[TextIO](sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    # Exceptions in callbacks, which nobody else reports: never silent, whatever the level.
    logging.getLogger("asyncio").setLevel(logging.ERROR)


class _Formatter(logging.Formatter):
    """Logs quote errors, and those quote payloads."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(escape(line) for line in super().format(record).split("\n"))
