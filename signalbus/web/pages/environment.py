"""The templates' environment: everything that a template prints is made harmless here, unless it says otherwise.

Two things are done to every text: control characters, line ends and bidirectional overrides are shown instead of
obeyed (`signalbus.escapes`), then HTML is escaped. ``exact`` leaves out the first, for values of forms, which come
back; ``lines`` keeps line ends, for tracebacks and payloads.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from markupsafe import escape as escape_html

from ...escapes import escape
from ...trace.rendering import clock, duration, moment, short_id
from .glyphs import GLYPHS, TONES
from .links import letter_url, letters_url, replay_url, trace_url

_SHORT_PLACE = 120  # characters of a text that is only a label


def make_environment() -> Environment:
    """Return an environment that escapes, and in which a name that is not there is an error."""
    environment = Environment(
        loader=PackageLoader("signalbus.web.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # Jinja2 leaves their types open.
    environment.filters.update(_FILTERS)  # pyright: ignore[reportUnknownMemberType]
    environment.globals.update(_GLOBALS)  # pyright: ignore[reportUnknownMemberType]
    return environment


def exact(text: str) -> Markup:
    """Escape HTML only: for the value of a form field, which has to come back as it was. HTML has no NUL."""
    return escape_html(text.replace("\0", "\ufffd"))


def lines(text: str) -> Markup:
    """Escape a text and keep its line ends and tabs."""
    shown = ("\t".join(escape(part) for part in line.split("\t")) for line in text.split("\n"))
    return escape_html("\n".join(shown))


def ago(at: float | datetime | None, now: float | None = None) -> str:
    """Return how long ago a time is, ``5 s ago``; "just now" below a second, and for times to come by skew."""
    seconds = seconds_of(at)
    if seconds is None:
        return ""
    age = (time.time() if now is None else now) - seconds
    return "just now" if age < 1 else f"{_rough(age)} ago"


def when(at: float | datetime | None) -> str:
    """Return a time in full, in UTC."""
    return clock(seconds_of(at), date=True)


def iso(at: float | datetime | None) -> str:
    """Return a time for ``<time datetime>``."""
    found = moment(seconds_of(at))
    return "" if found is None else found.astimezone(UTC).isoformat(timespec="milliseconds")


def took(seconds: float | timedelta | None) -> str:
    """Return a duration."""
    return duration(seconds.total_seconds() if isinstance(seconds, timedelta) else seconds)


def count(number: int, word: str, plural: str = "") -> str:
    """Return ``1 signal``, ``1,234 signals``."""
    return f"{number:,} {word if number == 1 else plural or word + 's'}"


def rate(number: float) -> str:
    """Return how many a second; three digits tell enough."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"


def clip(text: str, length: int = _SHORT_PLACE) -> str:
    """Cut a label."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def seconds_of(at: float | datetime | None) -> float | None:
    """Return seconds since 1970."""
    return at.timestamp() if isinstance(at, datetime) else at


def _rough(seconds: float) -> str:
    """A duration in one unit: ages change while one looks, so digits would only flicker."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def _visible(value: object) -> object:
    if value is None:
        return ""
    return escape(value) if isinstance(value, str) and not isinstance(value, Markup) else value


_FILTERS: dict[str, Callable[..., object]] = {
    "exact": exact,
    "lines": lines,
    "ago": ago,
    "when": when,
    "iso": iso,
    "took": took,
    "count": count,
    "clip": clip,
    "rate": rate,
    "short": short_id,
    "clock": clock,
}
_GLOBALS: dict[str, object] = {
    "glyphs": GLYPHS,
    "tones": TONES,
    "trace_url": trace_url,
    "letter_url": letter_url,
    "letters_url": letters_url,
    "replay_url": replay_url,
}
