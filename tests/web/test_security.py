"""What every request has to pass: the host, the origin, the token, its body; and what every answer carries."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from urllib.parse import urlencode

import pytest
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from signalbus.web.access import Access
from signalbus.web.bodies import LIMIT
from signalbus.web.headers import SECURITY_HEADERS
from signalbus.web.tokens import LOGIN
from tests.web.ask import Answer, get, head, post, raw
from tests.web.world import BEARER, GUARDED, TOKEN, World, world

FORM = {"content-type": "application/x-www-form-urlencoded"}
CSP = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)


def routes(here: World) -> list[tuple[str, str]]:
    """Return method and address of everything that is served, with an id where there is one."""
    app = here.server.app
    found = [route for route in app.routes if isinstance(route, Route)]
    assert len(found) == len(app.routes), "a kind of route that this test does not know"
    return [
        (method, route.path.replace("{id}", "some-id"))
        for route in found
        for method in sorted((route.methods or set()) - {"HEAD"})
    ]


async def page(request: Request) -> Response:
    return HTMLResponse("<title>page</title>")


async def broken(request: Request) -> Response:
    raise RuntimeError(f"canary {TOKEN}")


PAGES = (Route("/", page), Route("/act", page, methods=["POST"]), Route("/broken", broken))


# Tokens


async def test_every_route_wants_the_token(tmp_path: Path) -> None:
    async with world(tmp_path, access=GUARDED, pages=PAGES) as here:
        served = routes(here)
        assert len(served) > 25
        for method, path in served:
            if path == LOGIN:
                continue
            for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {TOKEN}"}):
                kind = FORM if not path.startswith("/api/") else {}
                ask = (
                    get(here.port, path, headers) if method == "GET" else post(here.port, path, {}, {**kind, **headers})
                )
                answer = await ask
                assert answer.status == 401, (method, path, headers)
                assert answer.headers["www-authenticate"].startswith("Bearer")
                assert answer.json["advice"]


async def test_with_the_token_it_answers(tmp_path: Path) -> None:
    async with world(tmp_path, access=GUARDED) as here:
        assert (await get(here.port, "/healthz", BEARER)).status == 200
        assert (await get(here.port, "/healthz", {"authorization": f"bearer  {TOKEN}"})).status == 200
        twice = head("GET", "/healthz", {"host": "localhost", **BEARER, "Authorization": f"Bearer {TOKEN}"})
        assert (await raw(here.port, twice)).status == 401
        assert (await get(here.port, "/api/v1/nothing", BEARER)).status == 404
        assert (await get(here.port, "/api/v1/nothing")).status == 401  # and not that it is not there


async def test_a_browser_gets_a_pass_for_the_token(tmp_path: Path) -> None:
    async with world(tmp_path, access=GUARDED, pages=PAGES) as here:
        sent = await get(here.port, "/", {"accept": "text/html,*/*"})
        assert (sent.status, sent.headers["location"]) == (303, "/login")
        wrong = await log_in(here, "not-the-token-at-all")
        assert wrong.status == 401
        assert "set-cookie" not in wrong.headers
        right = await log_in(here, TOKEN)
        assert (right.status, right.headers["location"]) == (303, "/")
        cookie = right.headers["set-cookie"]
        assert TOKEN not in cookie
        assert all(word in cookie for word in ("HttpOnly", "SameSite=strict", "Path=/", "Max-Age="))
        shown = {"cookie": cookie.partition(";")[0]}
        assert (await get(here.port, "/", shown)).status == 200
        assert (await get(here.port, "/", {"cookie": shown["cookie"][:-1] + "0x"})).status == 401
        assert (await get(here.port, "/", {**shown, "authorization": "Bearer wrong"})).status == 401


async def test_behind_tls_the_pass_is_for_tls_only(tmp_path: Path) -> None:
    access = Access(port=0, token=TOKEN, names=frozenset({"bus.example"}))
    async with world(tmp_path, access=access) as here:
        answer = await log_in(here, TOKEN, {"host": "bus.example", "origin": "https://bus.example"})
        assert "Secure" in answer.headers["set-cookie"]
        assert "Secure" not in (await log_in(here, TOKEN)).headers["set-cookie"]


async def test_logging_out_takes_the_pass_away(tmp_path: Path) -> None:
    async with world(tmp_path, access=GUARDED) as here:
        cookie = (await log_in(here, TOKEN)).headers["set-cookie"].partition(";")[0]
        answer = await post(here.port, "/logout", b"", {**FORM, "cookie": cookie})
        assert answer.status == 303
        assert "Max-Age=0" in answer.headers["set-cookie"]


async def log_in(here: World, token: str, headers: dict[str, str] | None = None) -> Answer:
    return await post(here.port, "/login", urlencode({"token": token}).encode(), {**FORM, **(headers or {})})


async def test_the_token_is_in_no_log_and_no_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with world(tmp_path, access=GUARDED, pages=PAGES) as here:
        answers = [
            await get(here.port, "/healthz", BEARER),
            await get(here.port, f"/api/v1/traces?prefix={TOKEN}", BEARER),
            await get(here.port, f"/{TOKEN}"),
            await log_in(here, TOKEN + "x"),
            await log_in(here, TOKEN),
            await post(here.port, "/api/v1/dead-letters/replay", TOKEN.encode(), BEARER),
            await get(here.port, "/broken", BEARER),
            await raw(here.port, f"GET / {TOKEN}\r\n\r\n".encode()),
        ]
    assert not any(TOKEN in str(answer.headers) + answer.body.decode() for answer in answers)
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert TOKEN not in said.replace(f"canary {TOKEN}", "")
    assert "'/broken' failed" in said


# Hosts and origins


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost:1:2", "", "[::1", "a@127.0.0.1"])
async def test_another_host_is_refused(tmp_path: Path, host: str) -> None:
    async with world(tmp_path) as here:
        answer = await get(here.port, "/healthz", {"host": host})
        assert answer.status in (400, 421)
        assert answer.json["error"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:99", "[::1]:8642"])
async def test_names_of_this_machine_are_ours(tmp_path: Path, host: str) -> None:
    async with world(tmp_path) as here:
        assert (await get(here.port, "/healthz", {"host": host})).status == 200


async def test_every_unsafe_route_refuses_other_origins(tmp_path: Path) -> None:
    async with world(tmp_path, pages=PAGES) as here:
        unsafe = [path for method, path in routes(here) if method != "GET"]
        assert len(unsafe) >= 7
        for path in unsafe:
            kind = {} if path.startswith("/api/") else FORM
            for sign in foreign(here.port):
                assert (await post(here.port, path, {}, {**kind, **sign})).status == 403, (path, sign)


def foreign(port: int) -> list[dict[str, str]]:
    """Return what a browser says of pages that are not ours."""
    return [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": f"http://localhost:{port}"},  # the host is 127.0.0.1
        {"origin": "http://127.0.0.1:1"},
        {"origin": f"http://127.0.0.1:{port}.evil.example"},
        {"origin": f"http://127.0.0.1:{port}@evil.example"},
        {"origin": f"ws://127.0.0.1:{port}"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"},
    ]


async def test_reads_of_other_origins_are_refused_but_links_work(tmp_path: Path) -> None:
    async with world(tmp_path, pages=PAGES) as here:
        for sign in foreign(here.port)[:-1]:
            assert (await get(here.port, "/api/v1/events", sign)).status == 403
        link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
        assert (await get(here.port, "/", link)).status == 200
        assert (await get(here.port, "/", {**link, "sec-fetch-dest": "iframe"})).status == 403


async def test_our_own_page_and_programs_may_change_things(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        order: dict[str, object] = {"query": {}, "dry_run": True}
        for sign in (
            {},
            {"origin": f"http://127.0.0.1:{here.port}", "sec-fetch-site": "same-origin"},
            {"host": "localhost", "origin": "http://localhost"},
        ):
            assert (await post(here.port, "/api/v1/dead-letters/replay", order, sign)).status == 200


async def test_a_websocket_is_not_served(tmp_path: Path) -> None:
    upgrade = {
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "eA==",
    }
    async with world(tmp_path) as here:
        assert (await get(here.port, "/api/v1/events", {**upgrade, "origin": "http://evil.example"})).status == 403
        assert (await get(here.port, "/nothing", upgrade)).status == 404


async def test_no_other_origin_is_ever_invited(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        asked = {"origin": f"http://127.0.0.1:{here.port}", "access-control-request-method": "POST"}
        answer = await get(here.port, "/api/v1/dead-letters/replay", asked, method="OPTIONS")
        assert answer.status == 405
        assert not any(name.startswith("access-control") for name in answer.headers)


# Bodies


async def test_a_body_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        for sent in (
            json_head(here, {"content-length": str(1 << 30)}),
            json_head(here, {"content-length": str(LIMIT + 1)}) + b"x",
            head("GET", "/healthz", {"host": "localhost", "content-length": str(1 << 30)}),
            head("GET", "/healthz", {"host": "localhost", "transfer-encoding": "chunked"}),
        ):
            answer = await raw(here.port, sent)
            assert answer.status == 413
            assert answer.headers["connection"] == "close"


async def test_a_chunked_body_is_counted_whatever_it_says(tmp_path: Path) -> None:
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    async with world(tmp_path) as here:
        lie = json_head(here, {"transfer-encoding": "chunked"}) + chunk * (LIMIT // 0x10000 + 2)
        assert (await raw(here.port, lie)).status == 413
        both = json_head(here, {"transfer-encoding": "chunked", "content-length": "2"}) + chunk * 40
        assert (await raw(here.port, both)).status in (400, 413)
        assert (await get(here.port, "/healthz")).status == 200


def json_head(here: World, headers: dict[str, str]) -> bytes:
    kind = {"host": f"127.0.0.1:{here.port}", "content-type": "application/json"}
    return head("POST", "/api/v1/dead-letters/discard", {**kind, **headers})


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
async def test_what_is_not_json_is_415(tmp_path: Path, kind: str) -> None:
    async with world(tmp_path) as here:
        answer = await post(here.port, "/api/v1/dead-letters/discard", {"query": {}}, {"content-type": kind})
        assert answer.status == 415
        packed = {"content-encoding": "gzip"}
        assert (await post(here.port, "/api/v1/dead-letters/discard", {"query": {}}, packed)).status == 415
        assert (await post(here.port, "/login", {}, {})).status == 415


# Answers


async def test_every_answer_carries_the_headers(tmp_path: Path) -> None:
    async with world(tmp_path, pages=PAGES) as here:
        answers = [
            await get(here.port, path)
            for path in ("/", "/broken", "/healthz", "/nothing", "/api/v1/traces", "/api/v1/traces/x", "/metrics")
        ]
        answers += [
            await get(here.port, "/", {"host": "evil.example"}),
            await post(here.port, "/api/v1/dead-letters/replay", b"{"),
            await get(here.port, "/healthz", method="DELETE"),
            await raw(here.port, b"this is no HTTP\r\n\r\n"),
        ]
        assert [answer.status for answer in answers] == [200, 500, 200, 404, 200, 404, 200, 421, 422, 415, 400]
        for answer in answers:
            assert answer.headers["content-security-policy"] == CSP
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers.items() >= dict(SECURITY_HEADERS).items()
            assert "server" not in answer.headers
            assert b"Traceback" not in answer.body


async def test_a_bug_is_logged_and_not_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with world(tmp_path, pages=PAGES) as here:
        answer = await get(here.port, "/broken")
    assert answer.status == 500
    assert b"canary" not in answer.body
    assert "canary" in caplog.text


async def test_more_at_a_time_than_can_be_answered_is_told_at_once(tmp_path: Path) -> None:
    gate, entered = asyncio.Event(), asyncio.Semaphore(0)

    async def hold(request: Request) -> Response:
        entered.release()
        await gate.wait()
        return Response()

    async with world(tmp_path, pages=[Route("/hold", hold)], crowd=3) as here:
        held = [asyncio.create_task(get(here.port, "/hold")) for _ in range(3)]
        for _ in held:
            await entered.acquire()
        answer = await get(here.port, "/healthz")
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        gate.set()
        assert [answer.status for answer in await asyncio.gather(*held)] == [200] * 3
        assert (await get(here.port, "/healthz")).status == 200
