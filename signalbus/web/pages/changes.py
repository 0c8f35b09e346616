"""Replay, discard, restore, cancel: each asks first, with the number it is about, and acts on POST only.

A form carries the question, frozen at the moment of asking, so that what dies later is not part of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote

from starlette.datastructures import ImmutableMultiDict
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ...deadletters import LetterQuery, LetterState
from ...deadletters.model import DEFAULT_RATE
from ...errors import ConfigError
from ...escapes import escape
from . import links
from .questions import MAX_IDS, MAX_RATE, LetterQuestion, read_note, read_rate
from .site import NotFound, Site

MAX_FORM = 64 * 1024  # bytes
FORM_TYPE = "application/x-www-form-urlencoded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """Something that can be done to dead letters. ``states``: those that it is for."""

    verb: str
    states: frozenset[LetterState]


ACTIONS = {
    action.verb: action
    for action in (
        Action(verb="replay", states=frozenset({LetterState.DEAD})),
        Action(verb="discard", states=frozenset({LetterState.DEAD})),
        Action(verb="restore", states=frozenset({LetterState.DISCARDED})),
        Action(verb="free", states=frozenset({LetterState.REPLAYING})),  # also `restore`, of what is stuck
    )
}

Form = ImmutableMultiDict[str, str]


class LetterChanges:
    """What can be done to dead letters."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._letters = site.inspection.letters

    async def confirm(self, request: Request) -> Response:
        """Ask whether that is meant, with the number of dead letters that it is about."""
        action = _action(request.query_params.get("action", ""))
        asked = LetterQuestion.read(request.query_params)
        if request.query_params.get("selected") and not asked.id:
            raise ConfigError("no dead letter was selected; go back, and tick those that are meant")
        _require_ids(action, asked)
        frozen = asked.frozen()
        page = await self._letters.page(frozen.query(action.states, limit=1))
        return self._site.page(
            request,
            "confirm.html",
            action=action,
            asked=asked,
            frozen=frozen.pairs(),
            total=page.total,
            example=page.letters[0] if page.letters else None,
            rate=DEFAULT_RATE,
            max_rate=MAX_RATE,
            back=links.with_query(links.LIST, asked.fields(after="")),
        )

    async def replay(self, request: Request) -> Response:
        """Begin a replay, and go to its page."""
        form = await _form(request)
        query = _query(form, "replay")
        replay = await self._letters.replay(query, by=author(request), rate=read_rate(form.get("rate", "")))
        return RedirectResponse(links.replay_url(replay.id), 303)

    async def discard(self, request: Request) -> Response:
        """Discard, and go back to the list."""
        form = await _form(request)
        query = _query(form, "discard")
        count = await self._letters.discard(query, by=author(request), note=read_note(form.get("note", "")))
        return _back(form, "discarded", count)

    async def restore(self, request: Request) -> Response:
        """Restore what was discarded, or free what is stuck in a replay, and go back to the list."""
        form = await _form(request)
        query = _query(form, "free" if form.get("action") == "free" else "restore")
        return _back(form, "restored", await self._letters.restore(query, by=author(request)))

    async def cancel(self, request: Request) -> Response:
        """Cancel what a replay has not sent yet, and show how far it came."""
        replay = (await _form(request)).get("id", "")
        if await self._letters.progress(replay) is None:
            raise NotFound(f"there is no replay {replay[:80]!a}")
        count = await self._letters.cancel(replay, by=author(request))
        return RedirectResponse(_told(links.replay_url(replay), "cancelled", count), 303)


def author(request: Request) -> str:
    """Return who asks, for the audit: the page, and the address it was used from."""
    named = escape(unquote(request.headers.get("X-Signalbus-User", ""))).strip()[:100]
    return named or (f"page at {request.client.host}" if request.client else "page")


def _action(verb: str) -> Action:
    if verb not in ACTIONS:
        raise ConfigError(f"action is {verb[:40]!a}; it must be one of {', '.join(ACTIONS)}")
    return ACTIONS[verb]


def _require_ids(action: Action, asked: LetterQuestion) -> None:
    if action.verb in ("restore", "free") and not asked.id:
        raise ConfigError(f"{action.verb} wants single dead letters, at most {MAX_IDS} at once; tick those in the list")


def _query(form: Form, verb: str) -> LetterQuery:
    action, asked = ACTIONS[verb], LetterQuestion.read(form)
    _require_ids(action, asked)
    if not asked.until and not asked.id:
        raise ConfigError("the form does not say until when; ask again: its question would include what dies meanwhile")
    return asked.query(action.states)


def _back(form: Form, word: str, count: int) -> RedirectResponse:
    asked = LetterQuestion.read(form)
    if len(asked.id) == 1:
        return RedirectResponse(_told(links.letter_url(asked.id[0]), word, count), 303)
    fields = asked.fields(until="", after="") if not asked.id else {"group": asked.group}
    return RedirectResponse(links.with_query(links.LIST, {**fields, "done": word, "count": str(count)}), 303)


def _told(url: str, word: str, count: int) -> str:
    return f"{url}{'&' if '?' in url else '?'}done={word}&count={count}"


async def _form(request: Request) -> Form:
    """Read a form. Raises `ConfigError` for anything else, and for one that is too large."""
    if request.headers.get("Content-Type", "").partition(";")[0].strip().lower() != FORM_TYPE:
        raise ConfigError(f"this address takes a form ({FORM_TYPE}); programs use /api/v1/dead-letters")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM:
            raise ConfigError(f"the form has more than {MAX_FORM} bytes; narrow the question down with a filter")
    try:
        pairs = parse_qsl(body.decode("ascii", "replace"), errors="replace", max_num_fields=2 * MAX_IDS)
    except ValueError as error:
        raise ConfigError(f"the form cannot be read: {error}") from error
    return ImmutableMultiDict(pairs)
