"""What of a payload can be asked for: ``data.order_id=A-1``. Pure.

Scalars in objects have a path and a text, as in the payload (``true``, ``12``, ``A-1``); elements of arrays have none.
`subject`, `correlationid` and `source` can be asked for as well. An index holds hashes only: what it finds is compared.
"""

from __future__ import annotations

import sys
import zlib
from typing import cast

import pydantic_core

WIDE = -1  # the hash of signals with more fields than are indexed: every search has to look at them
ATTRIBUTES = ("subject", "correlationid", "source")

_INDEXED = 24  # fields of one payload
_DEPTH = 6  # levels of nesting
_TEXT = 200  # characters of one value


def fields_of(data: str | None, most: int = sys.maxsize) -> list[tuple[str, str]]:
    """Return the paths of a captured payload's scalars, with their texts: the first ``most`` of them."""
    found: list[tuple[str, str]] = []
    if data is not None:
        try:
            value = cast("object", pydantic_core.from_json(data))
        except ValueError:
            return found  # not written by us
        _add_scalars(found, "data", value, _DEPTH, most)
    return found


def hashes(data: str | None, subject: str | None, correlationid: str | None) -> set[int]:
    """Return what the index holds of a signal."""
    fields = fields_of(data, _INDEXED + 1)
    found = {hash_of(path, text) for path, text in fields[:_INDEXED]}
    if len(fields) > _INDEXED:
        found.add(WIDE)
    if subject:
        found.add(hash_of("subject", subject))
    if correlationid:
        found.add(hash_of("correlationid", correlationid))
    return found


def hash_of(path: str, text: str) -> int:
    """Return the hash of a field."""
    return zlib.crc32(f"{path}={text}".encode("utf-8", "replace"))


def _add_scalars(found: list[tuple[str, str]], path: str, value: object, depth: int, most: int) -> None:
    if len(found) == most:
        return
    if isinstance(value, str):
        if len(value) <= _TEXT:
            found.append((path, value))
    elif isinstance(value, dict):
        if depth:
            for name, item in cast("dict[str, object]", value).items():
                _add_scalars(found, f"{path}.{name}", item, depth - 1, most)
    elif not isinstance(value, list):
        found.append((path, _written(value)))


def _written(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case _:
            return str(value)
