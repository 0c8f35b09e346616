"""Where a router's API is, for commands that ask it: as told, else on this machine if the broker is RabbitMQ."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

ROUTER = "SIGNALBUS_ROUTER"
DEFAULT_ROUTER = "http://127.0.0.1:8642"
PROBE_SECONDS = 1.0

RouterOption = Annotated[
    str | None,
    Parameter(
        help="A router's API, http://127.0.0.1:8642; its token is read from SIGNALBUS_TOKEN [env: SIGNALBUS_ROUTER]."
    ),
]
