"""Signals to bytes and back: CloudEvents in binary and structured mode. Pure.

The only place that raises `DecodeError`. Knows headers and bodies, but no broker. CloudEvents has no binding for
AMQP 0-9-1, so attributes are written as ``cloudEvents_<name>`` and read with the prefixes of its other bindings too.
Source: CloudEvents 1.0.2, AMQP protocol binding section 3.1.3.1 (prefixes) and JSON event format.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass, replace
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import cast

import orjson
import pydantic_core
from pydantic import BaseModel, TypeAdapter

from .errors import DecodeError, InvalidSignal
from .setters import setters
from .signals import ATTRIBUTES, ExtensionValue, Signal, check_signal_type, check_source, new_id, utc_now_text

HeaderValue = str | int | bool

PREFIX = "cloudEvents_"
PREFIXES = (PREFIX, "cloudEvents:", "ce-")
STRUCTURED = "application/cloudevents+json"
JSON = "application/json"
BYTES = "application/octet-stream"
EPOCH = datetime.fromtimestamp(0, UTC)  # the time of signals that name none

#: Where its publisher waits to hear what became of a signal: the id of a session. Not shown to handlers.
RECEIPT_TO = PREFIX + "receiptto"

_ID, _TYPE, _SOURCE, _TIME, _SPEC = (PREFIX + name for name in ("id", "type", "source", "time", "specversion"))
CORRELATION, CAUSATION, TRACE_PARENT, TRACE_STATE = (
    PREFIX + name for name in ("correlationid", "causationid", "traceparent", "tracestate")
)
SOURCE, SUBJECT, TIME = _SOURCE, PREFIX + "subject", _TIME
_TOLD = (SUBJECT, TIME, CORRELATION, CAUSATION, TRACE_PARENT)
Told = tuple[str, str | None, str | None, str | None, str | None, str | None]
_RECEIPT_TO = RECEIPT_TO.removeprefix(PREFIX)
_OPTIONAL = ("subject", "dataschema", "correlationid", "causationid", "traceparent", "tracestate")
_OPTIONAL_HEADERS = tuple(PREFIX + name for name in _OPTIONAL)
_optional_of = attrgetter(*_OPTIONAL)
_NONE = (None,) * len(_OPTIONAL)
_BINARY = (bytes, bytearray, memoryview)


@dataclass(frozen=True, slots=True, init=False)
class EncodedSignal:
    """A signal as it travels and is stored. ``headers`` hold its attributes, prefixed; ``body`` its data."""

    id: str
    type: str
    headers: Mapping[str, HeaderValue]
    body: bytes
    content_type: str | None

    def __init__(
        self,
        id: str,  # noqa: A002 - the attribute's name
        type: str,  # noqa: A002 - the attribute's name
        headers: Mapping[str, HeaderValue],
        body: bytes,
        content_type: str | None,
    ) -> None:
        _set_id(self, id)
        _set_type(self, type)
        _set_headers(self, headers)
        _set_body(self, body)
        _set_content_type(self, content_type)

    @property
    def size(self) -> int:
        """Bytes of the body and of the headers, roughly."""
        headers = sum(len(key) + (len(value) if isinstance(value, str) else 8) for key, value in self.headers.items())
        return len(self.body) + headers


_set_id, _set_type, _set_headers, _set_body, _set_content_type = setters(EncodedSignal)


def encode(signal: Signal, *, default_source: str = "", cause: EncodedSignal | None = None) -> EncodedSignal:
    """Encode a signal in binary mode; ``cause`` is what it names as its cause unless it names one itself.

    Raises `InvalidSignal` if its data cannot be encoded or it has no source.
    """
    source = signal.source or default_source
    if not source:
        raise InvalidSignal(f"signal {signal.id} has no source; say who publishes it: Signal(source='shop', ...)")
    headers: dict[str, HeaderValue] = {
        _SPEC: "1.0",
        _ID: signal.id,
        _TYPE: signal.type,
        _SOURCE: source,
        _TIME: _written(signal.time),
    }
    if (optional := _optional_of(signal)) != _NONE:
        pairs = zip(_OPTIONAL_HEADERS, optional, strict=True)
        headers.update((header, value) for header, value in pairs if value is not None)
    for name, value in signal.extensions.items():
        headers[PREFIX + name] = value
    if cause is not None:
        headers.setdefault(CAUSATION, cause.id)
        headers.setdefault(CORRELATION, _correlation(cause))
    body, content_type = encode_data(signal.data, signal.datacontenttype)
    return EncodedSignal(signal.id, signal.type, headers, body, content_type)


def encode_plain(signal_type: str, data: object, source: str, cause: EncodedSignal | None = None) -> EncodedSignal:
    """Encode a new signal that has nothing but a type, data and a source, as nearly all have.

    The same as `encode` of a `Signal` made of these, in half the time. Raises `InvalidSignal`.
    """
    check_signal_type(signal_type)
    check_source(source)
    signal_id = new_id()
    headers: dict[str, HeaderValue] = {
        _SPEC: "1.0",
        _ID: signal_id,
        _TYPE: signal_type,
        _SOURCE: source,
        _TIME: utc_now_text(),
    }
    if cause is not None:
        headers[CAUSATION] = cause.id
        headers[CORRELATION] = _correlation(cause)
    body, content_type = encode_data(data, None)
    return EncodedSignal(signal_id, signal_type, headers, body, content_type)


def encode_structured(signal: Signal) -> EncodedSignal:
    """Encode a signal in structured mode: the whole event as one JSON object in the body."""
    binary = encode(signal)
    event: dict[str, object] = {_attribute(header) or header: value for header, value in binary.headers.items()}
    if binary.content_type is not None:
        event["datacontenttype"] = binary.content_type
        if is_json(binary.content_type):
            event["data"] = _parse_json(binary.body)
        elif binary.content_type.startswith("text/"):
            event["data"] = binary.body.decode()
        else:
            event["data_base64"] = base64.b64encode(binary.body).decode()
    return EncodedSignal(signal.id, signal.type, {}, _dump_json(event), STRUCTURED)


def encode_data(data: object, content_type: str | None) -> tuple[bytes, str | None]:
    """Return body and content type: bytes as they are, text for ``text/*``, JSON for everything else.

    JSON follows pydantic for its models, and covers dataclasses, enums, dates and UUIDs; NaN is refused.
    Raises `InvalidSignal` if the data cannot be encoded.
    """
    if data is None:
        return b"", content_type
    if isinstance(data, _BINARY):
        return bytes(cast("bytes", data)), content_type or BYTES
    if content_type is not None and not is_json(content_type):
        if isinstance(data, str):
            return _utf8(data), content_type
        raise InvalidSignal(f"data is {type(data).__name__} but datacontenttype is {content_type!r}; pass bytes or str")
    try:
        return _dump_json(data), content_type or JSON
    except (TypeError, ValueError, RecursionError, pydantic_core.PydanticSerializationError) as error:
        raise InvalidSignal(f"data of type {type(data).__name__} cannot be written as JSON: {error}") from error


def _correlation(cause: EncodedSignal) -> str:
    """Return what a signal is correlated by that ``cause`` set off; a stranger's may be anything but a text."""
    return text_header(cause, CORRELATION) or cause.id


def text_header(encoded: EncodedSignal, header: str) -> str | None:
    """Return a header if it is there and a string."""
    value = encoded.headers.get(header)
    return value if isinstance(value, str) else None


def told(encoded: EncodedSignal) -> Told:
    """Return the attributes of a signal of ours that the ledger keeps, in the order in which recorders take them."""
    # All are texts, as they were encoded from a `Signal`, which has no others by these names.
    header = encoded.headers.get
    return cast("Told", (header(SOURCE, ""), *map(header, _TOLD)))


def with_headers(encoded: EncodedSignal, **headers: str | None) -> EncodedSignal:
    """Return the signal with further attributes, those that are not None."""
    added = {PREFIX + name: value for name, value in headers.items() if value is not None}
    return replace(encoded, headers={**encoded.headers, **added}) if added else encoded


def decode(encoded: EncodedSignal) -> Signal:
    """Decode a signal with its data. Raises `DecodeError` saying what is wrong."""
    structured = is_structured(encoded)
    attributes = _structured_attributes(encoded.body) if structured else _binary_attributes(encoded.headers)
    body, content_type = payload(encoded) if structured else (encoded.body, encoded.content_type)
    data = decode_data(body, content_type)
    fields: dict[str, str] = {}
    extensions: dict[str, ExtensionValue] = {}
    time = EPOCH
    for name, value in attributes.items():
        if name == "time":
            time = _read_time(value)
        elif name == _RECEIPT_TO:
            continue
        elif name in ATTRIBUTES:
            if not isinstance(value, str):
                raise DecodeError(f"attribute {name!r} is {type(value).__name__}, not a string")
            fields[name] = value
        else:
            extensions[name] = value
    if (version := fields.get("specversion", "1.0")) != "1.0":
        raise DecodeError(f"CloudEvents version {version!r} is not supported, only '1.0'")
    for name in ("id", "type", "source"):
        if name not in fields:
            raise DecodeError(f"not a CloudEvent: attribute {name!r} is missing")
    try:
        return Signal(
            id=fields["id"],
            type=fields["type"],
            source=fields["source"],
            time=time,
            datacontenttype=content_type,
            data=data,
            extensions=extensions,
            **{name: fields[name] for name in _OPTIONAL if fields.get(name)},
        )
    except InvalidSignal as error:
        raise DecodeError(str(error)) from error


def decode_data(body: bytes, content_type: str | None) -> object:
    """Return the data of a body: JSON parsed, ``text/*`` as a string, no body as None, else bytes."""
    if content_type is None:
        return body or None
    if is_json(content_type):
        return _parse_json(body) if body else None
    if content_type.startswith("text/"):
        try:
            return body.decode()
        except UnicodeDecodeError as error:
            raise DecodeError(f"the body says {content_type!r} but is not UTF-8: {error}") from error
    return body


def payload(encoded: EncodedSignal) -> tuple[bytes, str | None]:
    """Return the data as bytes with its content type, out of the envelope if the signal is structured."""
    if not is_structured(encoded):
        return encoded.body, encoded.content_type
    event = _event(encoded.body)
    content_type = event.get("datacontenttype", JSON)
    if not isinstance(content_type, str):
        raise DecodeError("attribute 'datacontenttype' is not a string")
    if (text := event.get("data_base64")) is not None:
        try:
            return base64.b64decode(str(text), validate=True), content_type
        except (binascii.Error, ValueError) as error:
            raise DecodeError(f"data_base64 is not base64: {error}") from error
    data = event.get("data")
    if data is None:
        return b"", None
    if is_json(content_type):
        return _dump_json(data), content_type
    return _utf8(data) if isinstance(data, str) else _dump_json(data), content_type


def is_json(content_type: str | None) -> bool:
    """Tell whether a content type means JSON: ``application/json``, ``text/json`` or ``*+json``."""
    if content_type == JSON:
        return True
    if content_type is None:
        return False
    essence = content_type.partition(";")[0].strip().lower()
    return essence in (JSON, "text/json") or essence.endswith("+json")


def is_structured(encoded: EncodedSignal) -> bool:
    """Tell whether the body is a whole CloudEvent."""
    content_type = encoded.content_type
    if content_type is None or content_type == JSON:
        return False
    return content_type.partition(";")[0].strip().lower() == STRUCTURED


def _binary_attributes(headers: Mapping[str, HeaderValue]) -> dict[str, HeaderValue]:
    return {name: value for header, value in headers.items() if (name := _attribute(header))}


def _attribute(header: str) -> str | None:
    for prefix in PREFIXES:
        if header.startswith(prefix):
            return header[len(prefix) :].lower()
    return None


def _structured_attributes(body: bytes) -> dict[str, ExtensionValue]:
    attributes: dict[str, ExtensionValue] = {}
    for name, value in _event(body).items():
        if name in ("data", "data_base64", "datacontenttype") or value is None:
            continue
        if not isinstance(value, str | int | bool):
            raise DecodeError(f"attribute {name!r} is {type(value).__name__}, not a string, integer or boolean")
        attributes[name] = value
    return attributes


def _event(body: bytes) -> dict[str, object]:
    event = _parse_json(body)
    if not isinstance(event, dict):
        raise DecodeError(f"a structured CloudEvent is a JSON object, not {type(event).__name__}")
    return cast("dict[str, object]", event)


def _parse_json(body: bytes) -> object:
    # Not orjson: it turns integers beyond 64 bits into floats, and so changes them silently.
    try:
        return cast("object", pydantic_core.from_json(body, allow_inf_nan=False))
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"the body is not JSON: {error}") from error


def _dump_json(data: object) -> bytes:
    if isinstance(data, BaseModel):
        return _dump_typed(data, data.__pydantic_serializer__)
    if is_dataclass(data) and not isinstance(data, type):
        return _dump_typed(data, TypeAdapter(type(data)).serializer)
    try:
        body = orjson.dumps(data, default=pydantic_core.to_jsonable_python)
    except TypeError:
        return _dump_json_slowly(data)  # orjson refuses integers beyond 64 bits
    # orjson writes NaN and infinity as null; a null that was None is told apart by the standard library.
    return _dump_json_slowly(data) if b"null" in body else body


def _dump_typed(data: object, serializer: pydantic_core.SchemaSerializer) -> bytes:
    body = serializer.to_json(data)
    if b"null" in body or b"NaN" in body or b"Infinity" in body:
        # pydantic writes NaN and infinity as null, or as its models say; JSON has neither.
        _dump_json_slowly(serializer.to_python(data, mode="json"))
    return body


def _dump_json_slowly(data: object) -> bytes:
    default = pydantic_core.to_jsonable_python
    return json.dumps(data, default=default, allow_nan=False, separators=(",", ":"), ensure_ascii=False).encode()


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidSignal(f"text data has lone surrogates: {error}") from error


def _written(time: datetime) -> str:
    if time.tzinfo is UTC:
        return time.isoformat()[:-6] + "Z"
    try:
        return time.astimezone(UTC).isoformat().replace("+00:00", "Z")
    except OverflowError as error:
        raise InvalidSignal(f"time {time.isoformat()} is beyond the calendar in UTC") from error


def _read_time(value: ExtensionValue) -> datetime:
    try:
        if isinstance(value, str):
            time = datetime.fromisoformat(value)
            return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
        if not isinstance(value, bool):
            return EPOCH + timedelta(milliseconds=value)  # an AMQP timestamp, as the AMQP binding allows
    except (ValueError, OverflowError) as error:
        raise DecodeError(f"time {ascii(value)[:80]} is not RFC 3339, nor milliseconds in range") from error
    raise DecodeError("attribute 'time' is bool, not a string")
