"""The options that every command has, with the same meaning everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

CONNECT_SECONDS = 10.0  # a person waits in front of it: less patient than a service


def flag(name: str, text: str, short: str | None = None) -> Parameter:
    """Return a parameter that is on when it is given and has no ``--no-`` form."""
    return Parameter(name=[name, short] if short else [name], negative=(), show_default=False, help=text)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """What every command understands."""

    url: Annotated[
        str | None,
        Parameter(help="The broker: sqlite:///file.db or amqp://user:password@host/vhost [env: SIGNALBUS_URL]."),
    ] = None
    json: Annotated[bool, flag("--json", "Print JSON: one object, or one a line for streams.")] = False
    timeout: Annotated[float | None, Parameter(help="Seconds to wait for the broker, or for what was asked for.")] = (
        None
    )
    quiet: Annotated[bool, flag("--quiet", "Print errors only.", "-q")] = False
    verbose: Annotated[bool, flag("--verbose", "Print more; errors come with their traceback.", "-v")] = False
    no_color: Annotated[bool, flag("--no-color", "Print without colour [env: NO_COLOR].")] = False
    yes: Annotated[bool, flag("--yes", "Take every question as answered with yes.")] = False

    @property
    def connect_seconds(self) -> float:
        """How long to wait for the broker."""
        return CONNECT_SECONDS if self.timeout is None else self.timeout


NO_OPTIONS = Options()
