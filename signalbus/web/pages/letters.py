"""Pages of dead letters: groups, lists, single ones, replays, and what was done. They only read."""

from __future__ import annotations

import time

from starlette.requests import Request
from starlette.responses import Response

from ...deadletters import LetterState
from . import links, payloads
from .questions import LetterQuestion
from .site import NotFound, Site

MAX_GROUPS = 200
MAX_AUDIT = 200
MAX_REPLAYS = 5  # beside the groups

#: What a page says was done, by the word in its address; the number is the only thing of it that is shown.
DONE = {"discarded": "discarded", "restored": "dead again", "cancelled": "dead again, as they had not been sent yet"}


class LetterPages:
    """What there is to see of dead letters."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._letters = site.inspection.letters

    async def groups(self, request: Request) -> Response:
        """Show what died of the same at the same place as one."""
        asked = LetterQuestion.read(request.query_params)
        groups = await self._letters.groups(asked.query())
        return self._site.page(
            request,
            "groups.html",
            asked=asked,
            groups=groups[:MAX_GROUPS],
            left_out=max(len(groups) - MAX_GROUPS, 0),
            total=sum(group.count for group in groups),
            replays=await self._letters.replays(MAX_REPLAYS),
            states=tuple(LetterState),
            done=_done(request),
            now=time.time(),
        )

    async def listing(self, request: Request) -> Response:
        """Show single dead letters, those of one group for example, newest first."""
        asked = LetterQuestion.read(request.query_params)
        page = await self._letters.page(asked.query())
        group = next(iter(await self._letters.groups(asked.query())), None) if asked.group else None
        return self._site.page(
            request,
            "letters.html",
            asked=asked,
            group=group,
            page=page,
            older=links.with_query(links.LIST, asked.fields(after=page.next)) if page.next else "",
            newest=links.with_query(links.LIST, asked.fields(after="")),
            states=tuple(LetterState),
            done=_done(request),
            now=time.time(),
        )

    async def show(self, request: Request) -> Response:
        """Show one, with its history and what it carried."""
        letter = await self._letters.get(_id(request))
        if letter is None:
            raise NotFound(f"there is no dead letter {_id(request)[:80]!a}")
        return self._site.page(
            request,
            "letter.html",
            letter=letter,
            payload=payloads.of_signal(letter.content),
            done=_done(request),
            now=time.time(),
        )

    async def replay(self, request: Request) -> Response:
        """Show how far a replay is, or the newest ones."""
        if not (identity := _id(request)):
            return self._site.page(
                request, "replays.html", replays=await self._letters.replays(MAX_AUDIT), now=time.time()
            )
        replay = await self._letters.progress(identity)
        if replay is None:
            raise NotFound(f"there is no replay {identity[:80]!a}")
        return self._site.page(request, "replay.html", replay=replay, done=_done(request), now=time.time())

    async def audit(self, request: Request) -> Response:
        """Show what was done to dead letters, and by whom."""
        entries = await self._letters.audit(MAX_AUDIT)
        return self._site.page(request, "audit.html", entries=entries, now=time.time())


def _id(request: Request) -> str:
    return str(request.path_params.get("id") or request.query_params.get("id", ""))


def _done(request: Request) -> tuple[int, str] | None:
    """Return what was done just before, out of the address that a form led to."""
    word, number = request.query_params.get("done", ""), request.query_params.get("count", "")
    if word not in DONE or not (number.isascii() and number.isdigit() and len(number) < 10):
        return None
    return int(number), DONE[word]
