"""A bus for one command."""

from __future__ import annotations

import getpass
import socket

from ..bus import Bus
from ..config import Settings, SqliteUrl, parse_url
from .failures import CommandError, Exit
from .options import Options


def command_bus(options: Options, *, ledger: str | None = None) -> Bus:
    """Return a bus, not yet open, named after who runs the command. ``ledger``: what it records of itself."""
    return Bus(
        options.url,
        name=command_name(),
        connect_timeout=options.connect_seconds,
        publish_timeout=options.timeout,
        ledger=ledger,
    )


def command_name() -> str:
    """Return the source of signals that name none: the user at this host."""
    return f"signalbus-cli/{_who()}"


def require_store(options: Options) -> None:
    """Refuse to look at a file that is not there: opening it would make it."""
    settings = Settings.read(url=options.url)
    place = parse_url(settings.url)
    if isinstance(place, SqliteUrl) and not place.path.exists():
        raise CommandError(
            f"{place.path} does not exist, so there is nothing to show",
            code=Exit.NOT_FOUND,
            advice="set --url or SIGNALBUS_URL, or publish and subscribe first: signalbus demo",
        )


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
