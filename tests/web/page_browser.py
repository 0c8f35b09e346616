"""A headless Chromium for tests of the page, and a server that it may ask: with the policy and checks of ours."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

import pytest
import uvicorn
from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException, TimeoutException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

T = TypeVar("T")

NO_CHROMIUM = "NO CHROMIUM: THE PAGE IS NOT TESTED IN A BROWSER. scripts/chromium installs chromium and chromium-driver"
WAIT_SECONDS = 15.0
_SWITCHES = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)
#: What `signalbus.web` sends with every answer.
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Browser:
    """Drives Chromium. Its calls block, so they are made in a thread: see `Site.use`."""

    def __init__(self, driver: webdriver.Chrome, address: str) -> None:
        self.driver = driver
        self.address = address

    def open(self, path: str) -> None:
        """Load a page."""
        self.driver.get(self.address + path)

    @property
    def path(self) -> str:
        """Where it is."""
        return self.driver.current_url.removeprefix(self.address)

    @property
    def text(self) -> str:
        """All that is shown, with single blanks. A page that is just being exchanged for another is asked again."""
        for _ in range(100):
            try:
                return " ".join(self.driver.find_element(By.TAG_NAME, "body").text.split())
            except (StaleElementReferenceException, NoSuchElementException):
                continue
        raise AssertionError(f"the page at {self.path} never stands still")

    def click(self, css: str) -> None:
        """Click what a selector finds."""
        self.driver.find_element(By.CSS_SELECTOR, css).click()

    def type(self, css: str, text: str) -> None:
        """Type into a field."""
        self.driver.find_element(By.CSS_SELECTOR, css).send_keys(text)

    def press(self, key: str) -> None:
        """Press a key, wherever the focus is."""
        self.driver.switch_to.active_element.send_keys(key)

    def js(self, expression: str) -> object:
        """Return the value of an expression."""
        return cast("object", self.driver.execute_script(f"return {expression}"))

    def cdp(self, command: str, **parameters: object) -> None:
        """Send a command of the developer tools."""
        self.driver.execute_cdp_cmd(command, parameters)

    def wait(self, condition: Callable[[], object]) -> None:
        """Wait until something is so."""
        try:
            WebDriverWait(self.driver, WAIT_SECONDS, poll_frequency=0.05).until(lambda _: condition())
        except TimeoutException as error:
            raise AssertionError(f"waited {WAIT_SECONDS:g} s at {self.path}: {self.text[:600]}") from error

    def sees(self, text: str) -> None:
        """Wait until a text is shown."""
        self.wait(lambda: text in self.text)

    def arrives(self, path: str) -> None:
        """Wait until it is at an address."""
        self.wait(lambda: self.path == path)

    def complaints(self) -> list[str]:
        """Return what the browser complained of, such as breaches of the policy, since the last time."""
        entries = cast("list[dict[str, str]]", self.driver.get_log("browser"))  # type: ignore[no-untyped-call]
        return [f"{entry['level']} {entry['message']}" for entry in entries if entry["level"] in ("SEVERE", "WARNING")]


@dataclass(kw_only=True)
class Site:
    """A page that is served. ``changed`` tells its readers; ``posted`` has the forms that came, with their origins."""

    address: str
    readers: set[asyncio.Queue[bytes | None]] = field(default_factory=set[asyncio.Queue[bytes | None]])
    posted: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    served: list[str] = field(default_factory=list[str])

    def tell(self, event: str, data: str = "{}") -> None:
        """Send an event to all readers."""
        for reader in self.readers:
            reader.put_nowait(f"event: {event}\ndata: {data}\n\n".encode())

    def hang_up(self) -> None:
        """End the streams of all readers."""
        for reader in self.readers:
            reader.put_nowait(None)

    async def use(self, work: Callable[[Browser], T], *, width: int = 1_200, height: int = 900) -> T:
        """Run ``work`` with a browser of its own."""
        return await asyncio.to_thread(self._use, work, width, height)

    def _use(self, work: Callable[[Browser], T], width: int, height: int) -> T:
        with chromium(width, height) as driver:
            return work(Browser(driver, self.address))


@asynccontextmanager
async def served(app: Starlette) -> AsyncGenerator[Site]:
    """Serve an application on a free port, with events, our headers and our check of origins."""
    site = Site(address="")

    async def events(request: Request) -> Response:
        return StreamingResponse(_events(site), media_type="text/event-stream")

    app.router.routes.append(Route("/api/v1/events", events))
    config = uvicorn.Config(_Guard(app, site), port=0, log_level="warning", lifespan="off", timeout_graceful_shutdown=2)
    server = _Server(config)
    running = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
                await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        site.address = f"http://127.0.0.1:{port}"
        yield site
    finally:
        site.hang_up()
        server.should_exit = True
        await running


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Guard:
    """What `signalbus.web` does before every answer, as far as a page can notice."""

    def __init__(self, app: ASGIApp, site: Site) -> None:
        self._app = app
        self._site = site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        self._site.served.append(scope["path"])
        headers = Headers(scope=scope)
        if scope["method"] == "POST":
            origin = headers.get("origin", "none")
            self._site.posted.append((scope["path"], origin))
            if origin != f"http://{headers['host']}" or headers.get("sec-fetch-site") != "same-origin":
                await PlainTextResponse(f"from {origin}", 403)(scope, receive, guarded)
                return
        await self._app(scope, receive, guarded)


async def _events(site: Site) -> AsyncGenerator[bytes]:
    queue: asyncio.Queue[bytes | None] = asyncio.Queue()
    site.readers.add(queue)
    try:
        yield b"retry: 100\n\n"
        while (told := await queue.get()) is not None:
            yield told
    finally:
        site.readers.discard(queue)


@contextmanager
def chromium(width: int, height: int) -> Iterator[webdriver.Chrome]:
    """Yield a Chromium with an empty profile. Skips the test where there is none, and fails it in CI."""
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(programs):
        if os.environ.get("CI"):
            pytest.fail(NO_CHROMIUM, pytrace=False)
        pytest.skip(NO_CHROMIUM)
    options = Options()
    options.binary_location, driver = (str(program) for program in programs)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # Its sockets are there, and their paths must be short.
    with tempfile.TemporaryDirectory(prefix="sb-", dir="/tmp", ignore_cleanup_errors=True) as profile:
        for switch in (*_SWITCHES, f"--window-size={width},{height}", f"--user-data-dir={profile}"):
            options.add_argument(switch)
        opened = webdriver.Chrome(options=options, service=Service(driver, env={**os.environ, "TMPDIR": profile}))
        try:
            opened.set_page_load_timeout(WAIT_SECONDS)
            opened.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride",
                {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
            )
            yield opened
        finally:
            opened.quit()


def screenshot(browser: Browser, path: Path) -> bytes:
    """Take a picture of what is shown, and return it."""
    assert browser.driver.save_screenshot(str(path))
    return path.read_bytes()
