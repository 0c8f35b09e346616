"""Asking an ASGI application in process, and what it answered, as a document."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from urllib.parse import unquote, urlencode, urlsplit

from starlette.types import ASGIApp, Message

VOID = frozenset({"meta", "link", "input", "br", "hr", "img", "wbr"})


@dataclass(frozen=True, kw_only=True)
class Element:
    """A start tag."""

    tag: str
    attributes: Mapping[str, str]


class Document(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[Element] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice: {names}"
        self.elements.append(Element(tag=tag, attributes={name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        """All text, with single blanks."""
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str, **attributes: str) -> list[Element]:
        """Return the elements of a tag with these attributes."""
        return [
            each
            for each in self.elements
            if each.tag == tag and all(each.attributes.get(name) == value for name, value in attributes.items())
        ]

    def links(self) -> list[str]:
        """Return where its links lead."""
        return [each.attributes["href"] for each in self.all("a") if "href" in each.attributes]

    def hidden(self) -> list[tuple[str, str]]:
        """Return the hidden fields of its forms."""
        return [(each.attributes["name"], each.attributes["value"]) for each in self.all("input", type="hidden")]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()

    @property
    def page(self) -> Document:
        """The body as a page, all elements of which are closed."""
        document = Document(self.text)
        assert not document.open, f"never closed: {document.open}"
        return document


@dataclass(frozen=True)
class Client:
    """Asks an application."""

    app: ASGIApp

    async def get(self, url: str) -> Answer:
        """GET an address."""
        return await self.ask("GET", url)

    async def post(
        self, url: str, fields: Iterable[tuple[str, str]] = (), *, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """POST a form."""
        sent = {"content-type": "application/x-www-form-urlencoded", **(headers or {})}
        return await self.ask("POST", url, urlencode(list(fields)).encode(), sent)

    async def ask(self, method: str, url: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        """Send a request and collect the answer."""
        parts = urlsplit(url)
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(parts.path),
            "raw_path": parts.path.encode(),
            "root_path": "",
            "query_string": parts.query.encode(),
            "headers": [(b"host", b"127.0.0.1"), *((k.encode(), v.encode()) for k, v in (headers or {}).items())],
            "client": ("127.0.0.1", 50_000),
            "server": ("127.0.0.1", 80),
        }
        sent: list[Message] = []
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if pending:
                return pending.pop()
            await asyncio.get_running_loop().create_future()  # a client that waits for its answer
            raise AssertionError

        async def send(message: Message) -> None:
            sent.append(message)

        async with asyncio.timeout(30):
            await self.app(scope, receive, send)
        start = sent[0]
        return Answer(
            status=start["status"],
            headers={name.decode().lower(): value.decode() for name, value in start["headers"]},
            body=b"".join(message.get("body", b"") for message in sent[1:]),
        )
