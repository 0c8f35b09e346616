"""Text from outside, made safe to print: what a terminal would obey is shown instead. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable

_NOT_WORD = re.compile(r"[^\w ]")


def escape(text: str) -> str:
    """Show control characters, line ends, bidirectional overrides and lone surrogates as ``\\x1b``, ``\\u202e``."""
    return text if text.isprintable() else _replaced(text, _shown)


def escape_json(text: str) -> str:
    """Write what `escape` escapes as ``\\uXXXX``, in JSON of one line; the value stays the same."""
    return text if text.isprintable() else _replaced(text, _json_escape)


def _replaced(text: str, replacement: Callable[[str], str]) -> str:
    return _NOT_WORD.sub(lambda match: match[0] if match[0].isprintable() else replacement(match[0]), text)


def _shown(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[index] << 8 | units[index + 1]:04x}" for index in range(0, len(units), 2))
