"""The doctor's look at RabbitMQ from its management side: what policies do to our queues."""

from __future__ import annotations

import asyncio
import base64
import json
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import cast
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from ..brokers.rabbitmq.audit import Drift, audit
from ..brokers.rabbitmq.topology import Topology
from ..config import RabbitUrl, masked
from ..escapes import escape
from .checks import Finding, State

SECONDS = 5.0
MOST_BYTES = 64 << 20
COLUMNS = "name,arguments,policy,operator_policy,effective_policy_definition"
SHOWN = 10


async def check_policies(place: RabbitUrl, management: str | None) -> list[Finding]:
    """Compare the queues with what they should be, as far as the management API can be asked."""
    base = management or _usual(place.servers[0])
    try:
        found = await asyncio.to_thread(_queues, base, place.servers[0])
    except (OSError, ValueError) as error:
        return [
            Finding(
                check="policies",
                found=f"not looked at: {masked(base)} does not tell: {escape(str(error))}",
                advice="rabbitmq-plugins enable rabbitmq_management, or say where it is: --management http://host:15672",
            )
        ]
    return list(_findings(audit(Topology(place.prefix, place.queue_type), found), len(found)))


def _findings(drifts: Sequence[Drift], queues: int) -> Iterator[Finding]:
    if not drifts:
        yield Finding(check="policies", found=f"none changes what becomes of signals, in {queues} queues")
    for drift in drifts[:SHOWN]:
        yield Finding(
            check="policies",
            found=escape(f"{drift.queue}: {drift.cause}: {drift.effect}"),
            state=State.WARNING,
            advice="let policies leave our queues out (rabbitmqctl list_policies); delete queues with other arguments "
            "once they are empty: they are made anew",
        )
    if len(drifts) > SHOWN:
        yield Finding(check="policies", found=f"and {len(drifts) - SHOWN} more of that kind", state=State.WARNING)


class _Unredirected(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object, **__: object) -> None:
        """Follow no redirect."""


def _usual(server: str) -> str:
    """Return where a server's management API usually is."""
    parts = urlsplit(server)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"https://{host}:15671" if parts.scheme == "amqps" else f"http://{host}:15672"


def _queues(base: str, server: str) -> list[Mapping[str, object]]:
    """Ask for all queues of a virtual host. Raises `OSError` or `ValueError`."""
    parts, user = urlsplit(base), urlsplit(server)
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"{masked(base)!r} is no http:// or https:// address")
    named = parts if parts.username else user
    place = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
    vhost = quote(unquote(user.path[1:]) or "/", safe="")
    request = urllib.request.Request(f"{place}/api/queues/{vhost}?columns={COLUMNS}")  # noqa: S310 - checked above
    who = f"{unquote(named.username or 'guest')}:{unquote(named.password or 'guest')}"
    request.add_header("Authorization", f"Basic {base64.b64encode(who.encode()).decode()}")
    # The password goes nowhere else: neither through a proxy nor where the answer may point to.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Unredirected)
    with opener.open(request, timeout=SECONDS) as answer:
        read: object = json.loads(answer.read(MOST_BYTES))
    if not isinstance(read, list):
        raise ValueError("the answer is no list of queues")
    return [cast("Mapping[str, object]", each) for each in cast("list[object]", read) if isinstance(each, dict)]
