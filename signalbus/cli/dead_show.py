"""``signalbus dead show``: one dead letter with every failed attempt and all that was done to it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Annotated, cast

from cyclopts import Parameter

from ..codec import EncodedSignal, decode, encode_structured
from ..deadletters import Letter
from ..delivery import Failure
from ..errors import DecodeError
from ..escapes import escape
from ..moments import rfc3339
from ..trace.rendering import clock
from .bodies import shown
from .daemon import RouterOption
from .failures import CommandError, Exit
from .interrupts import run_interruptible
from .letters import keeper, one_letter, state_words, summary_fields
from .options import NO_OPTIONS, Options
from .output import Output, log_to_stderr

EXAMPLES = """Examples:
  signalbus dead show 01929f
  signalbus dead show 01929f --json | jq .history"""

BODY_CHARACTERS = 4_000  # of a payload for people


def dead_show(
    letter: Annotated[str, Parameter(help="Its id, or its signal's, or how that begins: six characters or more.")],
    *,
    router: RouterOption = None,
    options: Options = NO_OPTIONS,
) -> int:
    """Show a dead letter: why it died, each failed attempt, its payload, and what was done to it."""
    log_to_stderr(options)

    async def show() -> int:
        output = Output(options)
        async with keeper(options, router) as letters:
            found = await letters.get((await one_letter(letters, letter)).id)
        if found is None:
            raise CommandError("it was there a moment ago, and is gone", code=Exit.NOT_FOUND)
        if options.json:
            output.json(**letter_fields(found))
        else:
            for line in _lines(found):
                output.line(line)
        return Exit.OK

    return run_interruptible(show)


def letter_fields(letter: Letter) -> dict[str, object]:
    """Return a whole dead letter as JSON data; the signal is a CloudEvent, or its parts where that cannot be read."""
    return {
        **summary_fields(letter.summary),
        "event": _event(letter.content),
        "history": [_failure_fields(failure) for failure in letter.history],
        "audit": [
            {
                "at": rfc3339(entry.at),
                "by": entry.by,
                "action": entry.action,
                "replay": entry.replay,
                "note": entry.note,
            }
            for entry in letter.audit
        ],
    }


def _event(content: EncodedSignal) -> object:
    try:
        return cast("object", json.loads(encode_structured(decode(content)).body))
    except DecodeError as error:
        return {
            "undecodable": str(error),
            "headers": dict(content.headers),
            "datacontenttype": content.content_type,
            "body_base64": base64.b64encode(content.body).decode(),
        }


def _payload(content: EncodedSignal) -> str:
    """Return the payload for people, its beginning if it is long."""
    try:
        text = escape(shown(decode(content).data))
    except DecodeError as error:
        return f"✗ undecodable: {escape(str(error))}; {len(content.body)} bytes, see --json"
    left = len(text) - BODY_CHARACTERS
    return text if left <= 0 else f"{text[:BODY_CHARACTERS]}… and {left} characters more, see --json"


def _failure_fields(failure: Failure) -> dict[str, object]:
    return {
        "attempt": failure.attempt,
        "error": failure.error,
        "message": failure.message,
        "at": rfc3339(failure.at),
        "session": failure.session,
        "traceback": failure.traceback,
    }


def _lines(letter: Letter) -> Iterator[str]:
    summary = letter.summary
    yield f"{state_words(summary.state)}  {escape(summary.type)}  {escape(summary.signal)}"
    yield f"  dead letter   {escape(summary.id)}"
    yield f"  subscription  {escape(summary.subscription)}"
    yield f"  died          {clock(summary.died.timestamp(), date=True)}, for the {_ordinal(summary.deaths)} time"
    yield f"  because       {escape(summary.reason.value)}: {escape(summary.detail)}"
    if summary.place:
        yield f"  raised at     {escape(summary.place)}"
    if summary.note:
        yield f"  note          {escape(summary.note)}"
    yield f"  payload       {_payload(letter.content)}"
    yield ""
    for failure in letter.history:
        at = clock(failure.at.timestamp(), date=True)
        yield f"attempt {failure.attempt}  {at}  session {escape(failure.session)}"
        yield f"  {escape(failure.error)}: {escape(failure.message)}"
        for line in failure.traceback.splitlines():
            yield f"    {escape(line)}"
    for entry in letter.audit:
        note = f": {entry.note}" if entry.note else ""
        yield f"{entry.action}  {clock(entry.at.timestamp(), date=True)}  by {escape(entry.by)}{escape(note)}"
    if summary.state.value == "dead":
        yield f"next: signalbus dead replay {escape(summary.id)}, or dead discard"


def _ordinal(number: int) -> str:
    endings = {1: "st", 2: "nd", 3: "rd"}
    return f"{number}{'th' if number % 100 in (11, 12, 13) else endings.get(number % 10, 'th')}"
