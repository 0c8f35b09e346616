"""Bodies as they are given on the command line."""

from __future__ import annotations

import json

from ..codec import JSON, decode_data, is_json
from ..errors import DecodeError
from .failures import CommandError, Exit
from .lines import open_input


def read_body(body: str | None) -> bytes:
    """Return a body given as JSON, ``-`` for standard input or ``@file``; nothing for none."""
    if body is None:
        return b""
    if not body.startswith("@"):
        return body.encode("utf-8", "surrogateescape")
    with open_input(body) as source:
        return source.read()


def checked(data: bytes, content_type: str | None) -> bytes | str | None:
    """Return the data as it is published: checked, and byte for byte what was given."""
    if not data:
        return None
    if content_type is None or is_json(content_type):
        try:
            decode_data(data, JSON)
        except DecodeError as error:
            hint = "quote it as JSON, or say what it is: --content-type text/plain"
            raise CommandError(f"the data is not JSON: {error}", code=Exit.USAGE, advice=hint) from error
    return data


def shown(data: object) -> str:
    """Return data on one line, for people."""
    if data is None:
        return "-"
    if isinstance(data, bytes):
        return f"<{len(data)} bytes>"
    return data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
