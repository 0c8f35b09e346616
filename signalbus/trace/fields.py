"""What of a payload can be asked for: ``data.order_id=A-1``. Pure.

Scalars in objects have a path and a text, as in the payload (``true``, ``12``, ``A-1``); elements of arrays have none.
`subject`, `correlationid` and `source` can be asked for as well. An index holds hashes only: what it finds is compared.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import cast

import pydantic_core

WIDE = -1  # the hash of signals with more fields than are indexed: every search has to look at them
ATTRIBUTES = ("subject", "correlationid", "source")

_INDEXED = 24  # fields of one payload
_DEPTH = 6  # levels of nesting
_TEXT = 200  # characters of one value


def fields_of(data: str | None) -> Iterator[tuple[str, str]]:
    """Yield the paths of a captured payload's scalars, with their texts."""
    if data is None:
        return
    try:
        value = cast("object", pydantic_core.from_json(data))
    except ValueError:
        return  # not written by us
    yield from _scalars("data", value, _DEPTH)


def hashes(data: str | None, subject: str | None, correlationid: str | None) -> set[int]:
    """Return what the index holds of a signal."""
    found = {hash_of(name, text) for name, text in (("subject", subject), ("correlationid", correlationid)) if text}
    for number, (path, text) in enumerate(fields_of(data)):
        if number == _INDEXED:
            found.add(WIDE)
            break
        found.add(hash_of(path, text))
    return found


def hash_of(path: str, text: str) -> int:
    """Return the hash of a field."""
    return zlib.crc32(f"{path}={text}".encode("utf-8", "replace"))


def _scalars(path: str, value: object, depth: int) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        if depth:
            for name, item in cast("dict[str, object]", value).items():
                yield from _scalars(f"{path}.{name}", item, depth - 1)
    elif isinstance(value, str):
        if len(value) <= _TEXT:
            yield path, value
    elif not isinstance(value, list):
        yield path, _written(value)


def _written(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case _:
            return str(value)
