"""A trace as a sequence diagram, in the language of Mermaid (https://mermaid.js.org/syntax/sequenceDiagram.html)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..escapes import escape
from .model import Delivery, End, SignalTrace, State, Trace
from .rendering import duration, inferred, short_id

_BROKER = "broker"
# Mermaid reads entities by their decimal numbers; a line of ours must not become several, or a command.
_SPECIAL = re.compile(r"[^\w .,@()/…µ+=!?*'-]|\bend\b", re.IGNORECASE)


def render_sequence(trace: Trace) -> str:
    """Return the diagram's source. Every name and text is made harmless for it."""
    people = _Participants()
    steps = list(_signal(trace.root, people))
    heads = [f"    participant {key} as {text(name)}" for name, key in people.keys.items()]
    return "\n".join(["sequenceDiagram", f"    participant {_BROKER}", *heads, *steps])


def text(raw: str) -> str:
    """Return a text that Mermaid shows as it is."""
    return _SPECIAL.sub(lambda match: "".join(f"#{ord(character)};" for character in match[0]), escape(raw)) or "-"


class _Participants:
    """Who takes part, by name, with the keys that stand for them."""

    def __init__(self) -> None:
        self.keys: dict[str, str] = {}

    def key(self, name: str) -> str:
        return self.keys.setdefault(name, f"p{len(self.keys)}")


def _signal(signal: SignalTrace, people: _Participants) -> Iterator[str]:
    publisher = people.key(_publisher(signal))
    label = f"{signal.type} {short_id(signal.id)}" + ("" if signal.published else " (inferred)")
    yield f"    {publisher}->>{_BROKER}: {'request ' if signal.request else ''}{text(label)}"
    if signal.unroutable:
        yield f"    {_BROKER}--x{publisher}: unroutable"
    for delivery in signal.deliveries:
        yield from _delivery(delivery, people)
    if signal.reply is not None:
        yield from _reply(signal, publisher, people)
    for child in signal.children:
        yield from _signal(child, people)


def _publisher(signal: SignalTrace) -> str:
    if signal.cause is not None:
        return signal.cause
    if signal.published is None:
        return signal.source or "not known"
    origin = signal.published.origin
    return f"{signal.source or origin.name}@{origin.host}" if origin.host else signal.source or origin.name


def _delivery(delivery: Delivery, people: _Participants) -> Iterator[str]:
    subscription = people.key(delivery.subscription)
    for gap in delivery.gaps:
        yield f"    Note over {subscription}: attempts {gap.first} to {gap.last} inferred"
    for attempt in delivery.attempts:
        waited = "" if attempt.queued is None else f" waited {duration(attempt.queued)}"
        yield f"    {_BROKER}->>{subscription}: attempt {attempt.number}{waited}"
        if attempt.end in (End.RUNNING, End.UNKNOWN):
            continue
        arrow = "-->>" if attempt.end in (End.ACKED, End.RELEASED) else "--x"
        parts = (attempt.end.value, duration(attempt.work), text_or_none(attempt.error), inferred(attempt))
        told = " ".join(part for part in parts if part)
        yield f"    {subscription}{arrow}{_BROKER}: {told}"
        if attempt.delay is not None:
            yield f"    Note over {_BROKER}: next after {duration(attempt.delay)}"
    if delivery.state in (State.WAITING, State.IN_HAND, State.RETRYING):
        yield f"    Note over {subscription}: {delivery.state.value}"


def text_or_none(raw: str) -> str:
    """Return a text as `text` does, nothing for nothing."""
    return text(raw) if raw else ""


def _reply(signal: SignalTrace, publisher: str, people: _Participants) -> Iterator[str]:
    reply = signal.reply
    assert reply is not None
    if reply.answered is None and not reply.responder:
        yield f"    {_BROKER}--x{publisher}: {text(reply.outcome)}"
        return
    responder = people.key((reply.origin.name if reply.origin else "") or reply.responder)
    yield f"    {_BROKER}->>{responder}: request"
    arrow = "-->>" if reply.outcome == "reply" else "--x"
    told = " ".join(part for part in (text(reply.outcome), duration(reply.work), text_or_none(reply.error)) if part)
    yield f"    {responder}{arrow}{publisher}: {told}"
