"""Raw HTTP, as a client writes it that nobody checks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

DEADLINE = 10.0
Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Json:
        """The body as a JSON object."""
        return cast(Json, json.loads(self.body))

    @property
    def list(self) -> list[Json]:
        """The body as a JSON array."""
        return cast(list[Json], json.loads(self.body))


async def raw(port: int, sent: bytes, *, bodyless: bool = False) -> Answer:
    """Send bytes over a connection of their own, and read one answer."""
    async with asyncio.timeout(DEADLINE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            with suppress(ConnectionError):  # it may answer, and close, before it has read all
                writer.write(sent)
                await writer.drain()
            return await read_answer(reader, bodyless=bodyless)
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


async def read_answer(reader: asyncio.StreamReader, *, bodyless: bool = False) -> Answer:
    """Read one answer; ``bodyless``: to HEAD. Raises `asyncio.IncompleteReadError` if the connection ends before."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    status = int(first.split(" ")[1])
    if bodyless:
        return Answer(status, headers, b"")
    if headers.get("transfer-encoding") == "chunked":
        return Answer(status, headers, await _chunks(reader))
    return Answer(status, headers, await reader.readexactly(int(headers.get("content-length", "0"))))


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        await reader.readline()
    await reader.readline()
    return body


async def get(port: int, target: str, headers: Mapping[str, str] | None = None, *, method: str = "GET") -> Answer:
    """Ask for something. ``headers`` that are given replace ours."""
    sent = head(method, target, {"host": f"127.0.0.1:{port}", **(headers or {})})
    return await raw(port, sent, bodyless=method == "HEAD")


async def post(
    port: int, target: str, body: object = None, headers: Mapping[str, str] | None = None, *, method: str = "POST"
) -> Answer:
    """Send JSON, or bytes as they are."""
    sent = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
    given = {
        "host": f"127.0.0.1:{port}",
        "content-type": "application/json",
        "content-length": str(len(sent)),
        **(headers or {}),
    }
    return await raw(port, head(method, target, given) + sent)


def head(method: str, target: str, headers: Mapping[str, str]) -> bytes:
    """Return the head of a request."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode("utf-8", "surrogateescape")
