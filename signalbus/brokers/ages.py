"""When a stored signal was published. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from ..codec import EPOCH, PREFIXES, EncodedSignal, HeaderValue

# RFC 9562, section 5.7: the first 48 bits are milliseconds since 1970, then version 7, later variant 10.
_UUID7 = re.compile(r"([0-9a-f]{8})-([0-9a-f]{4})-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE)
_TIMES = tuple(prefix + "time" for prefix in PREFIXES)


def published_at(signal: EncodedSignal) -> datetime | None:
    """Return when a signal was made: by its id if that is a UUIDv7, as ours are, else by its time attribute.

    None if neither tells. The id comes first as the time is the publisher's to choose.
    """
    if found := _UUID7.fullmatch(signal.id):
        try:
            return EPOCH + timedelta(milliseconds=int(found[1] + found[2], 16))
        except OverflowError:
            pass  # beyond the calendar: an id that only looks like one
    times = (signal.headers[name] for name in _TIMES if name in signal.headers)
    return next((time for value in times if (time := _time(value)) is not None), None)


def _time(value: HeaderValue) -> datetime | None:
    try:
        if isinstance(value, str):
            time = datetime.fromisoformat(value)
            return time.astimezone(UTC) if time.tzinfo is not None else time.replace(tzinfo=UTC)
        if not isinstance(value, bool):
            return EPOCH + timedelta(milliseconds=value)  # an AMQP timestamp, as in `codec`
    except (ValueError, OverflowError):
        pass  # not a time
    return None
