"""Payloads in the ledger: what of a signal's data may be kept, with secrets taken out. Pure.

Only JSON is kept, since in anything else the fields to redact cannot be told apart; the rest is described by its size
and type. A payload that is cut stays valid JSON, so that it can be searched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple, cast, get_args

from pydantic import BaseModel, Secret, SecretBytes, SecretStr

from ..codec import decode_data, is_json
from ..errors import DecodeError

REDACTED = "[redacted]"
CUT = "…"
FULL_LIMIT = 262_144  # bytes; a batch of facts has to fit into one message
#: Names of fields that hold secrets: a field is redacted if these words appear in its name, in whatever spelling.
SECRET_NAMES = (
    *("password", "passwd", "passphrase", "pwd", "secret", "token", "authorization", "credential", "credentials"),
    *("api_key", "private_key", "access_key", "cookie", "cvv", "cvc"),
)

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_A-Za-z]+")
_TYPED_SECRETS = (SecretStr, SecretBytes, Secret)
_DEPTH = 32  # levels of nesting that are looked at
_ITEMS = 100  # of a list of models, to see which of their fields are secrets


class CaptureMode(StrEnum):
    """How much of a payload is kept."""

    OFF = "off"
    TRUNCATED = "truncated"
    FULL = "full"


class Payload(NamedTuple):
    """A payload on its way into a fact: nothing has been read yet, as that is not for the way of a signal."""

    body: bytes
    content_type: str | None
    secrets: frozenset[str]


class _Bounds(NamedTuple):
    depth: int
    items: int
    characters: int


_ALL = _Bounds(_DEPTH, 1 << 30, 1 << 30)
_STEPS = (_Bounds(8, 50, 400), _Bounds(5, 20, 100), _Bounds(3, 8, 40), _Bounds(1, 8, 20))


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """What of payloads is kept. ``redact``: names of fields, see `SECRET_NAMES`; ``limit``: bytes if truncated."""

    mode: CaptureMode = CaptureMode.TRUNCATED
    redact: tuple[str, ...] = SECRET_NAMES
    limit: int = 2_048

    def payload(self, body: bytes, content_type: str | None, data: object = None) -> Payload | None:
        """Note a payload for `read`. ``data`` is what became ``body``: its fields of type `SecretStr` are redacted."""
        if self.mode is CaptureMode.OFF or not body:
            return None
        return Payload(body, content_type, secret_fields(data))

    def read(self, payload: Payload) -> tuple[str, bool]:
        """Return what is kept, as JSON, and whether something was cut."""
        size = len(payload.body)
        if not is_json(payload.content_type):
            return _dumped(f"[{size} bytes of {payload.content_type or 'unknown type'}]"), True
        try:
            return self._fitted(decode_data(payload.body, payload.content_type), size, payload.secrets)
        except DecodeError:
            return _dumped(f"[{size} bytes that are not JSON]"), True
        except ValueError:  # an integer of thousands of digits: Python writes none
            return _dumped(f"[{size} bytes of JSON]"), True

    def _fitted(self, data: object, size: int, secrets: frozenset[str]) -> tuple[str, bool]:
        limit = FULL_LIMIT if self.mode is CaptureMode.FULL else self.limit
        names = _Names(self.redact, secrets)
        for bounds in (_ALL, *_STEPS) if size <= 4 * limit else _STEPS:
            copy = _Copy(names, bounds)
            text = _dumped(copy.of(data, bounds.depth))
            if len(text.encode()) <= limit:
                return text, copy.cut
        return _dumped(f"[{size} bytes of JSON]"), True


class _Names:
    """Which fields are secrets."""

    def __init__(self, redact: tuple[str, ...], secrets: frozenset[str]) -> None:
        self._redact = redact
        self._secrets = secrets

    def __contains__(self, name: str) -> bool:
        return name in self._secrets or _is_secret(name[:200], self._redact)


class _Copy:
    """A copy of data without secrets, within bounds."""

    def __init__(self, names: _Names, bounds: _Bounds) -> None:
        self._names = names
        self._bounds = bounds
        self.cut = False

    def of(self, value: object, depth: int) -> object:
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, dict):
            return self._mapping(cast("dict[str, object]", value), depth) if depth else self._left_out()
        if isinstance(value, list):
            return self._list(cast("list[object]", value), depth) if depth else self._left_out()
        return value

    def _text(self, text: str) -> str:
        if len(text) <= self._bounds.characters:
            return text
        self.cut = True
        return text[: self._bounds.characters] + CUT

    def _mapping(self, value: Mapping[str, object], depth: int) -> dict[str, object]:
        self.cut = self.cut or len(value) > self._bounds.items
        return {
            self._text(name): REDACTED if name in self._names else self.of(item, depth - 1)
            for name, item in islice(value.items(), self._bounds.items)
        }

    def _list(self, value: list[object], depth: int) -> list[object]:
        kept = [self.of(item, depth - 1) for item in islice(value, self._bounds.items)]
        return kept if len(kept) == len(value) else [*kept, self._left_out()]

    def _left_out(self) -> str:
        self.cut = True
        return CUT


def secret_fields(data: object, depth: int = 3) -> frozenset[str]:
    """Return the names of the fields that are secrets by their type, in a pydantic model or in a few of a list."""
    if isinstance(data, BaseModel):
        return _secrets_of(type(data))
    if depth and isinstance(data, dict):
        return _union(cast("dict[object, object]", data).values(), depth)
    if depth and isinstance(data, list | tuple):
        return _union(cast("Iterable[object]", data), depth)
    return frozenset()


def _union(items: Iterable[object], depth: int) -> frozenset[str]:
    return frozenset[str]().union(*(secret_fields(item, depth - 1) for item in islice(items, _ITEMS)))


@lru_cache(maxsize=1024)
def _secrets_of(model: type[BaseModel]) -> frozenset[str]:
    found: set[str] = set()
    _collect(model, found, set())
    return frozenset(found)


def _collect(model: type[BaseModel], found: set[str], seen: set[type[BaseModel]]) -> None:
    seen.add(model)
    for name, field in model.model_fields.items():
        for kind in _kinds(field.annotation):
            if issubclass(kind, _TYPED_SECRETS):
                found.update(alias for alias in (name, field.alias, field.serialization_alias) if alias)
            elif issubclass(kind, BaseModel) and kind not in seen:
                _collect(kind, found, seen)


def _kinds(annotation: Any) -> Iterable[type[Any]]:
    """Yield the classes in an annotation, ``SecretStr`` out of ``list[SecretStr | None]``."""
    if isinstance(annotation, type) and not get_args(annotation):
        yield annotation
    for argument in get_args(annotation):
        yield from _kinds(argument)
    origin = getattr(annotation, "__origin__", None)
    if isinstance(origin, type):
        yield origin  # Secret[int]


@lru_cache(maxsize=8192)
def _is_secret(name: str, redact: tuple[str, ...]) -> bool:
    words = _words(name)
    return any(_within(_words(secret), words) for secret in redact)


@lru_cache(maxsize=8192)
def _words(name: str) -> tuple[str, ...]:
    return tuple(word.lower() for word in _WORD.findall(name)) or (name.lower(),)


def _within(part: tuple[str, ...], whole: tuple[str, ...]) -> bool:
    """Tell whether the words stand in a name, in sequence; 'apikey' is 'api_key' as well."""
    if "".join(part) in whole:
        return True
    return any(whole[start : start + len(part)] == part for start in range(len(whole) - len(part) + 1))


def _dumped(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
