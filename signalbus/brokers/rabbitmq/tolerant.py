"""Make the driver's decoder survive what other clients send.

pamqp raises on a timestamp in microseconds, on text that is not UTF-8 and on deep nesting. The driver then drops the
connection, the broker delivers the same message again, and nothing behind it ever arrives. Here the message gets
through, marked as malformed, so that it can become a dead letter.

The patch is for the whole process, idempotent, and changes only what would have raised.
"""

from __future__ import annotations

import struct
from typing import Final

from pamqp import commands
from pamqp.header import ContentHeader

_MARK: Final = "signalbus_malformed"
_FIXED = struct.Struct(">HHQ")  # class, weight, body size: before the properties
_TAG = struct.Struct(">QB")
_REASON_LIMIT = 200

_read_header = ContentHeader.unmarshal
_read_deliver = commands.Basic.Deliver.unmarshal


def install() -> None:
    """Patch the decoder. Idempotent."""
    ContentHeader.unmarshal = _unmarshal_header  # type: ignore[method-assign]
    commands.Basic.Deliver.unmarshal = _unmarshal_deliver  # type: ignore[assignment,method-assign]


def malformed(header: ContentHeader) -> str | None:
    """Return why the properties of a message could not be read, or None."""
    reason: str | None = getattr(header, _MARK, None)
    return reason


def _unmarshal_header(self: ContentHeader, data: bytes) -> None:
    try:
        _read_header(self, data)
    except Exception as error:  # any of them would end the connection
        if len(data) < _FIXED.size:
            raise
        self.class_id, self.weight, self.body_size = _FIXED.unpack_from(data)
        self.properties = commands.Basic.Properties()
        setattr(self, _MARK, f"its properties cannot be decoded: {_short(error)}")


def _unmarshal_deliver(self: commands.Basic.Deliver, data: bytes) -> None:
    try:
        _read_deliver(self, data)
    except ValueError:
        # A routing key may be any bytes.
        self.consumer_tag, rest = _short_string(data)
        self.delivery_tag, redelivered = _TAG.unpack_from(rest)
        self.redelivered = bool(redelivered & 1)
        self.exchange, rest = _short_string(rest[_TAG.size :])
        self.routing_key, _ = _short_string(rest)


def _short_string(data: bytes) -> tuple[str, bytes]:
    end = 1 + data[0]
    return data[1:end].decode("utf-8", "replace"), data[end:]


def _short(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    text = f"{type(error).__name__}: {error}"
    return text if len(text) <= _REASON_LIMIT else text[:_REASON_LIMIT] + "..."
