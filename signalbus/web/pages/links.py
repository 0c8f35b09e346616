"""Addresses of pages. Ids come from outside, so only a plain one becomes part of a path.

A browser changes a path that has ``.``, ``..`` or a backslash in it, even encoded; a query it leaves alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote, urlencode

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:~-]{0,199}")

TRACES = "/"
SEARCH = "/traces"
LETTERS = "/dead-letters"
LIST = "/dead-letters/list"
REPLAYS = "/dead-letters/replays"
AUDIT = "/dead-letters/audit"
SUBSCRIBERS = "/subscribers"

Fields = Mapping[str, str | Iterable[str]]


def trace_url(signal: str) -> str:
    """Return the address of a signal's trace."""
    return _by_id(SEARCH, signal)


def letter_url(letter: str) -> str:
    """Return the address of a dead letter."""
    return _by_id("/dead-letters/letters", letter)


def replay_url(replay: str) -> str:
    """Return the address of a replay."""
    return _by_id(REPLAYS, replay)


def letters_url(**fields: str | Iterable[str]) -> str:
    """Return the address of a list of dead letters."""
    return with_query(LIST, fields)


def with_query(path: str, fields: Fields) -> str:
    """Return an address with what is not empty of some fields; several values of one name one after the other."""
    pairs = [(name, value) for name, values in fields.items() for value in _several(values) if value]
    return f"{path}?{urlencode(pairs, errors='replace')}" if pairs else path


def _several(values: str | Iterable[str]) -> Iterable[str]:
    return (values,) if isinstance(values, str) else values


def _by_id(path: str, identity: str) -> str:
    if _PLAIN.fullmatch(identity):
        return f"{path}/{quote(identity, safe=':~')}"
    return with_query(path, {"id": identity})
