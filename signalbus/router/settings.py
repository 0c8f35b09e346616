"""Settings of a router: flags, then environment, then file, then defaults. Read once, checked at the start."""

from __future__ import annotations

import difflib
import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import cast

from ..config import DEFAULT_URL, masked, parse_url
from ..errors import ConfigError
from ..trace.listing import Retention
from ..web.access import HOSTS, MIN_TOKEN, TOKEN, Access, split_address

Value = str | int | float

_NUMBERS = ("keep_days", "keep_mib", "connect_timeout", "drain_timeout")
_WHOLE = ("keep_mib",)
MASK = "***"


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSettings:
    """Settings by their names in the file; ``SIGNALBUS_<NAME>`` in the environment. Times in seconds.

    ``token`` is a secret: only from the environment, or from ``token_file``.
    """

    url: str = field(default=DEFAULT_URL, repr=False)
    store: str = ""  # the file that the ledger is kept in
    keep_days: float = 7.0
    keep_mib: int = 4_096
    connect_timeout: float = 10.0
    drain_timeout: float = 30.0
    listen: str = ""  # host:port
    token_file: str = ""
    token: str = field(default="", repr=False)
    hosts: str = ""  # further names that the API is known by, with commas between: a proxy's, a container's

    @property
    def retention(self) -> Retention:
        """How much is kept."""
        return Retention(seconds=self.keep_days * 86_400, bytes=self.keep_mib << 20)

    def access(self) -> Access | None:
        """Return where the API listens, and for whom; None if it does not. Reads the token file.

        Raises `ConfigError`.
        """
        if not self.listen:
            return None
        file = Path(self.token_file) if self.token_file and not self.token else None
        return Access.read(self.listen, file, environment={TOKEN: self.token, HOSTS: self.hosts})

    def shown(self) -> dict[str, Value]:
        """Return the settings for people: without secrets."""
        values: dict[str, Value] = {each.name: getattr(self, each.name) for each in fields(self)}
        return values | {"url": masked(self.url), "token": MASK if self.token else ""}


def read_settings(
    file: Path | None = None, environment: Mapping[str, str] | None = None, **flags: Value | None
) -> RouterSettings:
    """Return the settings; ``flags`` that are not None win. Raises `ConfigError` naming the setting, and the source."""
    environment = os.environ if environment is None else environment
    values: dict[str, Value] = {}
    sources: dict[str, str] = {}
    for name, value in (_from_file(file) if file is not None else {}).items():
        sources[name] = f"{name!r} in {file}"
        values[name] = _typed(name, value, sources[name])
    for name in _known():
        variable = f"SIGNALBUS_{name.upper()}"
        if text := environment.get(variable):
            values[name], sources[name] = _parsed(name, text, variable), variable
        if (flag := flags.get(name)) is not None:
            values[name], sources[name] = flag, f"--{name.replace('_', '-')}"
    settings = RouterSettings(**values)  # type: ignore[arg-type]  # by name and type above
    _check(settings, sources)
    return settings


def _from_file(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            read: dict[str, object] = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"the configuration {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration {path} is no TOML: {error}") from error
    for name in read:
        if name not in _known():
            near = difflib.get_close_matches(name, _known(), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"valid are {', '.join(_known())}"
            raise ConfigError(f"{name!a} in {path} is no setting of a router; {hint}")
        if name == "token":
            raise ConfigError(f"'token' in {path}: a secret has a file of its own; name it with token_file")
    return read


def _known() -> list[str]:
    return [each.name for each in fields(RouterSettings)]


def _typed(name: str, value: object, source: str) -> Value:
    """Return a value of the file, if it has the type of its setting: numbers stand without quotes."""
    fits = (str,) if name not in _NUMBERS else (int,) if name in _WHOLE else (int, float)
    if type(value) not in fits:
        raise ConfigError(f"{source} is {value!a}; it must be {_wanted(name)}")
    return cast("Value", value)


def _parsed(name: str, text: str, source: str) -> Value:
    """Return a text of the environment as its setting's type."""
    if name not in _NUMBERS:
        return text
    try:
        return int(text) if name in _WHOLE else float(text)
    except ValueError as error:
        raise ConfigError(f"{source} is {text!a}; it must be {_wanted(name)}") from error


def _wanted(name: str) -> str:
    return "a whole number" if name in _WHOLE else "a number" if name in _NUMBERS else "a text, in quotes"


def _check(settings: RouterSettings, sources: Mapping[str, str]) -> None:
    for name in _NUMBERS:
        value = getattr(settings, name)
        if not 0 < value < math.inf:
            raise ConfigError(f"{sources[name]} is {value:g}; it must be above 0, and finite")
    try:
        parse_url(settings.url)
    except ConfigError as error:
        raise ConfigError(f"{sources.get('url', 'the default URL')}: {error}") from error
    if settings.listen:
        _check_listen(settings.listen, sources["listen"])


def _check_listen(listen: str, source: str) -> None:
    try:
        host, port = split_address(listen)
        Access(host=host, port=port, token="-" * MIN_TOKEN)  # with the real one later: it may be in a file
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
