"""Where a router's API is, for commands that ask it: where one was told, else on this machine beside a RabbitMQ."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from typing import Annotated

from cyclopts import Parameter

from ..config import RabbitUrl, Settings, parse_url
from ..errors import SignalBusError
from ..web.client import Client
from .options import Options

ROUTER = "SIGNALBUS_ROUTER"
USUAL = "http://127.0.0.1:8642"
LOOK_SECONDS = 2.0  # for one that nobody named; on this machine, so it answers at once or not at all

RouterOption = Annotated[
    str | None,
    Parameter(
        help="The API of a router, like http://127.0.0.1:8642; its token comes from SIGNALBUS_TOKEN "
        "[env: SIGNALBUS_ROUTER]."
    ),
]


async def find_daemon(options: Options, router: str | None) -> Client | None:
    """Return the router that was named, or one on this machine that is of the same RabbitMQ; None if there is none.

    One that was named and does not answer is an error of the first question.
    """
    named = router or os.environ.get(ROUTER)
    if named:
        return Client.read(named, timeout=options.connect_seconds)
    place = parse_url(Settings.read(url=options.url).url)
    if not isinstance(place, RabbitUrl):
        return None
    client = Client.read(USUAL, timeout=LOOK_SECONDS)
    try:
        about = await asyncio.to_thread(client.about)
    except SignalBusError:
        return None  # nobody there, or nobody that we may ask
    return replace(client, timeout=options.connect_seconds) if _is_at(about.url, place) else None


def _is_at(url: str, place: RabbitUrl) -> bool:
    """Tell whether a URL leads to the same queues, whoever logs in there."""
    try:
        other = parse_url(url)
    except SignalBusError:
        return False
    if not isinstance(other, RabbitUrl) or other.prefix != place.prefix:
        return False
    return bool(set(map(_host, other.servers)) & set(map(_host, place.servers)))


def _host(server: str) -> str:
    """Return host, port and vhost of a server's URL."""
    _, _, rest = server.partition("://")
    host, slash, vhost = rest.rpartition("@")[2].partition("/")
    return f"{host if ':' in host else f'{host}:5672'}/{vhost if slash else ''}"
