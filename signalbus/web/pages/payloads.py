"""What a signal carried, to be read by people: decoded as far as it goes, indented, and cut. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ...codec import EncodedSignal, is_json

MAX_SHOWN = 16_384  # characters of a payload on a page
_MAX_INDENT = 20
_PARTS = re.compile(r'"(?:[^"\\]|\\.)*"?|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """A payload as text. ``size`` in bytes of the whole; ``cut``: not all of it is in ``text``."""

    text: str
    size: int
    content_type: str
    cut: bool


def of_signal(signal: EncodedSignal) -> Payload:
    """Return the body of a signal; bytes that are no text are shown as ``\\xff``."""
    whole = signal.body
    read = whole[: MAX_SHOWN * 4]  # bytes of one character, at most
    text, cut = read.decode("utf-8", "backslashreplace"), len(read) < len(whole)
    return _payload(text, len(whole), signal.content_type or "", json=is_json(signal.content_type), cut=cut)


def of_record(data: str, *, cut: bool) -> Payload:
    """Return what the ledger captured, which is JSON."""
    return _payload(data, len(data.encode("utf-8", "replace")), "application/json", json=True, cut=cut)


def _payload(text: str, size: int, content_type: str, *, json: bool, cut: bool) -> Payload:
    shown = indented(text[:MAX_SHOWN]) if json else text[:MAX_SHOWN]
    return Payload(
        text=shown[:MAX_SHOWN],
        size=size,
        content_type=content_type,
        cut=cut or len(text) > MAX_SHOWN or len(shown) > MAX_SHOWN,
    )


def indented(text: str) -> str:
    """Indent JSON part by part: numbers keep their digits, and what is cut or broken is shown as far as it goes."""
    return "".join(_indented(text))


def _indented(text: str) -> Iterator[str]:
    depth = 0
    before = ""
    for match in _PARTS.finditer(text):
        part = match[0]
        if part in ("}", "]"):
            depth = max(depth - 1, 0)
            yield "" if before in ("{", "[") else _line(depth)
        elif before in ("{", "[", ","):
            yield _line(depth)
        yield part + (" " if part == ":" else "")
        depth += part in ("{", "[")
        before = part


def _line(depth: int) -> str:
    return "\n" + "  " * min(depth, _MAX_INDENT)
