"""Configuration: one URL and a few settings, read in one place.

``sqlite:///signalbus.db`` (relative), ``sqlite:////var/lib/app/bus.db`` (absolute),
``amqp://user:password@host1:5672,host2/vhost`` and ``amqps://``. Options of a broker are query parameters of its URL.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, cast, get_args
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from .errors import ConfigError
from .ledger import Capture, CaptureMode, LedgerSettings, Level
from .ledger.capture import SECRET_NAMES

DEFAULT_URL = "sqlite:///signalbus.db"

Durability = Literal["full", "normal"]
QueueType = Literal["quorum", "classic"]
Lane = Literal["on", "off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SqliteUrl:
    """Where the embedded broker keeps its file. ``durability='normal'`` may lose the last commits in a power cut."""

    path: Path
    durability: Durability = "full"
    busy_timeout: float = 10.0  # seconds to wait for a foreign lock
    min_free_bytes: int = 16 * 1024 * 1024  # publishes are refused below; acks still need room
    network_filesystem: bool = False  # True: open on NFS, SMB, FUSE ... all the same
    ledger_days: float = 7.0  # how long facts are kept
    ledger_bytes: int = 1 << 30  # how much of them is kept, roughly


@dataclass(frozen=True, slots=True, kw_only=True)
class RabbitUrl:
    """How to reach RabbitMQ. ``servers`` are tried in turn; each is a URL of its own, password included."""

    servers: tuple[str, ...] = field(repr=False)
    prefix: str = "signalbus"
    queue_type: QueueType = "quorum"
    heartbeat: int = 10  # seconds; RabbitMQ advises 5 to 20
    silent_after: float = 15.0  # seconds of ready messages with no delivery before a consumer is recycled
    backoff_cap: float = 10.0  # seconds between attempts to reconnect, at most
    lease_renewal: float = 300.0  # seconds; well below the broker's consumer_timeout (30 minutes)
    lane: Lane = "on"  # "off": every frame through the driver, several times slower
    ca: Path | None = None  # certificate authority for amqps, PEM; None: the system's


BrokerUrl = SqliteUrl | RabbitUrl


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of a bus. Times in seconds."""

    url: str = field(default=DEFAULT_URL, repr=False)
    name: str = "signalbus"  # the source of signals that name none
    max_signal_bytes: int = 16 * 1024 * 1024  # RabbitMQ 4 refuses more by default
    publish_timeout: float = 30.0
    request_timeout: float = 30.0
    connect_timeout: float = 30.0
    drain_timeout: float = 30.0
    ledger: str = "all"  # or failures, off
    ledger_sample: float = 1.0  # share of the signals of which everything is recorded; failures always are
    ledger_payload: str = "off"  # or truncated, full
    ledger_redact: str = ""  # further names of fields that hold secrets, with commas between

    def __post_init__(self) -> None:
        parse_url(self.url)
        _ = self.recording
        for name in ("max_signal_bytes", "publish_timeout", "request_timeout", "connect_timeout", "drain_timeout"):
            value = getattr(self, name)
            if not value > 0:
                raise ConfigError(f"setting {name} is {value}; it must be greater than 0")
        if not self.name or not self.name.isprintable():
            raise ConfigError(f"setting name is {self.name!a}; it must be printable and not empty")

    @classmethod
    def read(cls, environment: Mapping[str, str] | None = None, **overrides: str | float | None) -> Settings:
        """Read ``SIGNALBUS_<SETTING>`` variables; ``overrides`` that are not None win."""
        environment = os.environ if environment is None else environment
        values: dict[str, str | float] = {}
        for setting in fields(cls):
            override = overrides.get(setting.name)
            variable = f"SIGNALBUS_{setting.name.upper()}"
            if override is not None:
                values[setting.name] = override
            elif text := environment.get(variable):
                values[setting.name] = _converted(text, setting.default, variable)
        return cls(**values)  # type: ignore[arg-type]  # checked name by name above

    @property
    def recording(self) -> LedgerSettings:
        """What the ledger records. Raises `ConfigError`."""
        if not 0.0 <= self.ledger_sample <= 1.0:
            raise ConfigError(f"setting ledger_sample is {self.ledger_sample}; it must be from 0 to 1")
        redacted = (name.strip() for name in self.ledger_redact.split(","))
        return LedgerSettings(
            level=Level(_known("ledger", self.ledger, tuple(Level))),
            share=self.ledger_sample,
            capture=Capture(
                mode=CaptureMode(_known("ledger_payload", self.ledger_payload, tuple(CaptureMode))),
                redact=(*SECRET_NAMES, *(name for name in redacted if name)),
            ),
        )

    def __repr__(self) -> str:
        return f"Settings(url={masked(self.url)!r}, name={self.name!r})"


def parse_url(url: str) -> BrokerUrl:
    """Parse the URL of a broker. Raises `ConfigError` naming what is wrong; passwords are masked in it."""
    scheme, separator, _ = url.partition("://")
    if not separator:
        raise ConfigError(f"{masked(url)!r} is not a URL; use {DEFAULT_URL} or amqp://user:password@host/vhost")
    match scheme.lower():
        case "sqlite":
            return _sqlite(url)
        case "amqp" | "amqps":
            return _rabbit(url)
        case _:
            raise ConfigError(f"unknown scheme {scheme!a} in {masked(url)!r}; valid are sqlite, amqp and amqps")


def masked(url: str) -> str:
    """Return a URL with its password replaced, for logs and errors; also one that is mistyped."""
    scheme, separator, rest = url.rpartition("://")
    # The last @ of all, not of the host part: a password may have a slash that its owner did not encode.
    user, at, place = rest.rpartition("@")
    name, colon, _ = user.partition(":")
    return f"{scheme}{separator}{name}{':***' if colon else ''}{at}{place}"


def _sqlite(url: str) -> SqliteUrl:
    parts = urlsplit(url)
    if parts.netloc:
        raise ConfigError(f"{url!r} names a host; a file is sqlite:///relative.db or sqlite:////absolute.db")
    path = unquote(parts.path[1:])
    if not path or path == ":memory:":
        raise ConfigError(f"{url!r} names no file; use {DEFAULT_URL}. A bus in memory would keep no promise")
    options = _options(
        parts, "durability", "busy_timeout", "min_free_bytes", "network_filesystem", "ledger_days", "ledger_bytes"
    )
    return SqliteUrl(
        path=Path(path).absolute(),
        durability=cast("Durability", _choice(options, "durability", get_args(Durability), "full")),
        busy_timeout=_number(options, "busy_timeout", 10.0),
        min_free_bytes=int(_number(options, "min_free_bytes", 16 * 1024 * 1024)),
        network_filesystem=_choice(options, "network_filesystem", ("true", "false"), "false") == "true",
        ledger_days=_number(options, "ledger_days", 7.0),
        ledger_bytes=int(_number(options, "ledger_bytes", 1 << 30)),
    )


def _rabbit(url: str) -> RabbitUrl:
    parts = urlsplit(url)
    options = _options(
        parts, "prefix", "queue_type", "heartbeat", "silent_after", "backoff_cap", "lease_renewal", "lane", "ca"
    )
    user, at, hosts = parts.netloc.rpartition("@")
    if not hosts:
        raise ConfigError(f"{masked(url)!r} names no host; use amqp://user:password@host/vhost")
    path = parts.path or "/"
    if "@" in path and not at:
        raise ConfigError(f"{masked(url)!r} has an '@' behind the host; write a '/' in the password as '%2F'")
    if "/" in path[1:]:
        vhost = quote(unquote(path[1:]), safe="")
        raise ConfigError(f"the vhost in {masked(url)!r} has a slash; write it as {vhost!r}")
    servers = tuple(f"{parts.scheme}://{user}{at}{host}{path}" for host in hosts.split(",") if host)
    for server in servers:
        try:
            _ = urlsplit(server).port
        except ValueError as error:
            raise ConfigError(f"invalid port in {masked(server)!r}; use host:5672") from error
    prefix = options.get("prefix", "signalbus")
    if not prefix or len(prefix) > 60 or not prefix.replace(".", "").replace("-", "").replace("_", "").isalnum():
        raise ConfigError(f"prefix {prefix!a} must be 1 to 60 letters, digits, '.', '-' or '_'")
    heartbeat = int(_number(options, "heartbeat", 10))
    if heartbeat < 1:
        raise ConfigError("heartbeat must be at least 1 second; without it a dead broker is never noticed")
    return RabbitUrl(
        servers=servers,
        prefix=prefix,
        queue_type=cast("QueueType", _choice(options, "queue_type", get_args(QueueType), "quorum")),
        heartbeat=heartbeat,
        silent_after=_number(options, "silent_after", 15.0),
        backoff_cap=_number(options, "backoff_cap", 10.0),
        lease_renewal=_number(options, "lease_renewal", 300.0),
        lane=cast("Lane", _choice(options, "lane", get_args(Lane), "on")),
        ca=Path(options["ca"]) if "ca" in options else None,
    )


def _options(parts: SplitResult, *known: str) -> dict[str, str]:
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"valid are {', '.join(known)}"
            raise ConfigError(f"unknown option {name!a} in the {parts.scheme} URL; {hint}")
    return options


def _choice(options: Mapping[str, str], name: str, valid: tuple[str, ...], default: str) -> str:
    value = options.get(name, default)
    if value not in valid:
        raise ConfigError(f"option {name} is {value!a}; valid are {', '.join(valid)}")
    return value


def _known(setting: str, value: str, valid: tuple[str, ...]) -> str:
    if value not in valid:
        raise ConfigError(f"setting {setting} is {value!a}; valid are {', '.join(valid)}")
    return value


def _number(options: Mapping[str, str], name: str, default: float) -> float:
    text = options.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError as error:
        raise ConfigError(f"option {name} is {text!a}, not a number") from error
    if not 0 <= value < float("inf"):
        raise ConfigError(f"option {name} is {text}; it must not be negative or infinite")
    return value


def _converted(text: str, default: object, variable: str) -> str | float:
    if isinstance(default, str):
        return text
    try:
        return int(text) if isinstance(default, int) else float(text)
    except ValueError as error:
        raise ConfigError(f"{variable} is {text!a}, not a number") from error
