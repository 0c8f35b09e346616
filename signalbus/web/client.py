"""Asking a daemon over HTTP: what the command line does where there is one. Blocks; a service asks from a thread.

No redirect is followed, and no proxy of the environment is used. Raises the errors that the daemon's own side had:
`BrokerUnavailable` (nobody there, or it cannot reach its broker), `StorageError`, `Backpressure`, `ConfigError` (a
question that cannot be), `NotPermitted` (the token is missing or wrong).
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast
from urllib.parse import quote, urlencode, urlsplit

from pydantic import ValidationError

from .. import errors
from ..brokers.base import QueueInfo
from ..liveness import SubscriberSession, SubscriptionStatus
from .access import TOKEN, token_from_file
from .operations import PREFIX
from .state import ABOUT, STATS, About, Stats
from .values import QUEUES, SESSIONS, SUBSCRIBERS, Shape, written

T = TypeVar("T")

Parameters = Sequence[tuple[str, str]]

TIMEOUT = 30.0
LIMIT = 256 << 20  # bytes of an answer: a dead letter may have a large body
_PIECE = 1 << 16
_TRANSIENT: dict[str, type[errors.BrokerError]] = {
    each.__name__: each for each in (errors.BrokerUnavailable, errors.Backpressure, errors.StorageError)
}


class Unknown(errors.SignalBusError):
    """Raised when a daemon does not know what it was asked for by its id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A daemon. ``url`` like ``http://127.0.0.1:8642``; ``timeout`` in seconds for one answer."""

    url: str
    token: str | None = field(default=None, repr=False)
    timeout: float = TIMEOUT

    def __post_init__(self) -> None:
        if not _is_usable(self.url):
            raise errors.ConfigError(
                f"{_shown(self.url)} is no address of a daemon; write http://127.0.0.1:8642, and no token in it"
            )

    @classmethod
    def read(
        cls,
        url: str,
        token_file: Path | None = None,
        *,
        timeout: float = TIMEOUT,
        environment: Mapping[str, str] | None = None,
    ) -> Client:
        """Return a client with the token of a file, or of ``SIGNALBUS_TOKEN``. Raises `ConfigError`."""
        environment = os.environ if environment is None else environment
        token = token_from_file(token_file) if token_file is not None else environment.get(TOKEN) or None
        return cls(url=url, token=token, timeout=timeout)

    def about(self) -> About:
        """Return what answers there."""
        return self.get(ABOUT, "/about")

    def subscribers(self) -> Sequence[SubscriptionStatus]:
        """Return each subscription with its state, and who serves it."""
        return self.get(SUBSCRIBERS, "/subscribers")

    def sessions(self) -> Sequence[SubscriberSession]:
        """Return who is connected, oldest first."""
        return self.get(SESSIONS, "/sessions")

    def topology(self) -> Sequence[QueueInfo]:
        """Return the subscriptions with what their queues hold."""
        return self.get(QUEUES, "/topology")

    def stats(self) -> Stats:
        """Return numbers about the bus."""
        return self.get(STATS, "/stats")

    # Beneath

    def get(self, shape: Shape[T], path: str, parameters: Parameters = ()) -> T:
        """Ask for a value. Raises `Unknown` if there is none at this path."""
        return self._loaded(shape, self.get_json(path, parameters))

    def get_json(self, path: str, parameters: Parameters = ()) -> bytes:
        """Ask for a JSON text."""
        query = f"?{urlencode(parameters)}" if parameters else ""
        return self._ask("GET", f"{PREFIX}{path}{query}", None, {})

    def post(self, shape: Shape[T], path: str, order: object, headers: Mapping[str, str]) -> T:
        """Order something, once, and return what became of it."""
        sent = {"content-type": "application/json", **headers}
        return self._loaded(shape, self._ask("POST", f"{PREFIX}{path}", written(order), sent))

    def _loaded(self, shape: Shape[T], body: bytes) -> T:
        try:
            return shape.load(body)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"][1:])
            raise errors.BrokerError(
                f"the answer of {self.url} cannot be read: {where} {first['msg']}; do its version and ours fit?"
            ) from error

    def _ask(self, method: str, target: str, body: bytes | None, headers: Mapping[str, str]) -> bytes:
        secret = {"authorization": f"Bearer {self.token}"} if self.token else {}
        connection = self._connection()
        try:
            connection.request(method, target, body, {"accept": "application/json", **secret, **headers})
            answer = connection.getresponse()
            told = _read(answer, time.monotonic() + self.timeout)
        except (OSError, http.client.HTTPException) as error:
            unsure = "" if method == "GET" else "; what was ordered may have been done: look before you order it again"
            raise errors.BrokerUnavailable(
                f"no answer from the daemon at {self.url}: {str(error) or type(error).__name__}; "
                f"is it running? signalbus router --listen HOST:PORT{unsure}"
            ) from error
        finally:
            connection.close()
        if answer.status >= 300:
            raise self._error(answer.status, told)
        return told

    def _connection(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        host = parts.hostname or ""
        if parts.scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(host, parts.port, timeout=self.timeout, context=context)
        return http.client.HTTPConnection(host, parts.port, timeout=self.timeout)

    def _error(self, status: int, body: bytes) -> errors.SignalBusError:
        problem = _problem(body)
        text = f"{self.url}: {problem.get('error') or f'it answered with status {status}'}"
        if advice := problem.get("advice"):
            text += f"; {advice}"
        kind = problem.get("type", "")
        match status:
            case 401 | 403:
                return errors.NotPermitted(text)
            case 404 if kind == "NotFound":
                return Unknown(text)
            case 400 | 413 | 415 | 421 | 422:
                return errors.ConfigError(text)
            case 503:
                return _TRANSIENT.get(kind, errors.BrokerUnavailable)(text)
            case _:
                return errors.BrokerError(text)


def segment(text: str) -> str:
    """Return an id as one segment of a path."""
    return quote(text, safe="", errors="replace")


def _read(answer: http.client.HTTPResponse, deadline: float) -> bytes:
    body = bytearray()
    while piece := answer.read1(_PIECE):
        body += piece
        if len(body) > LIMIT:
            raise http.client.HTTPException(f"the answer has more than {LIMIT} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError("the answer did not come in time")
    if answer.length:
        raise http.client.IncompleteRead(bytes(body), answer.length)
    return bytes(body)


def _problem(body: bytes) -> Mapping[str, str]:
    try:
        found = cast("object", json.loads(body))
    except ValueError:
        return {}
    members = cast("dict[object, object]", found) if isinstance(found, dict) else {}
    return {name: value for name, value in members.items() if isinstance(name, str) and isinstance(value, str)}


def _is_usable(url: str) -> bool:
    try:
        parts = urlsplit(url)
        place = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return place and parts.username is None and not parts.path.strip("/") and not parts.query


def _shown(url: str) -> str:
    """Return a URL that cannot be used, without what may be a secret in it."""
    scheme, separator, rest = url.partition("://")
    return ascii(f"{scheme}{separator}{rest.rpartition('@')[2]}")[:80]
