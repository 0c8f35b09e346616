"""A trace as a tree, in plain text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..escapes import escape
from .model import Attempt, Delivery, End, Gap, Reply, SignalTrace, State, Trace
from .rendering import clipped, clock, columns, duration, inferred, padded, short_id, state_words, who

_NAME_COLUMNS = 28  # at most, of the names of subscriptions
_STATE_COLUMNS = 11
_ATTEMPTS = 10  # that a terminal shows of one delivery
_SAME: dict[End, State] = {
    End.ACKED: State.ACKED,
    End.DEAD: State.DEAD,
    End.RETRIED: State.RETRYING,
    End.RUNNING: State.IN_HAND,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeView:
    """How to show a tree.

    ``width``: columns of the terminal; None shows everything in full. ``now``: seconds since 1970, for how long
    something waits. ``consumers``: how many serve a subscription, where the broker told.
    """

    width: int | None = None
    now: float | None = None
    consumers: Mapping[str, int] | None = None


def render_tree(trace: Trace, view: TreeView | None = None) -> str:
    """Return the lines of a trace, without an end of line after the last."""
    view = view or TreeView()
    lines = [*_signal(trace.root, "", view, root=True), *_footer(trace)]
    return "\n".join(clipped(line.rstrip(), view.width) for line in lines)


def _signal(signal: SignalTrace, prefix: str, view: TreeView, *, root: bool = False) -> Iterator[str]:
    """Yield the head of a signal and what became of it; ``prefix`` goes before all but the first line."""
    if not root and (line := _compact(signal, view)):
        yield line
        return
    yield _head(signal, view, root=root)
    yield from _body(signal, prefix, view)


def _head(signal: SignalTrace, view: TreeView, *, root: bool) -> str:
    parts = [escape(signal.type) or "(type not known)", _id(signal, view)]
    if signal.request:
        parts.append("request")
    if signal.published is None:
        parts.append("(publication inferred)")
    else:
        parts.append(f"from {_publisher(signal)}")
        parts.append(clock(signal.at, date=root))
    if signal.subject:
        parts.append(f"subject {escape(signal.subject)}")
    if root and signal.causationid:
        parts.append(f"caused by {escape(signal.causationid) if view.width is None else short_id(signal.causationid)}")
    if signal.unroutable:
        parts.append(f"{state_words(State.UNROUTABLE)}: no subscription matched")
    return "  ".join(part for part in parts if part)


def _publisher(signal: SignalTrace) -> str:
    assert signal.published is not None
    origin = signal.published.origin
    source = escape(signal.source or origin.name or origin.session)
    return f"{source}@{escape(origin.host)}" if origin.host else source


def _id(signal: SignalTrace, view: TreeView) -> str:
    return escape(signal.id) if view.width is None else short_id(signal.id)


def _compact(signal: SignalTrace, view: TreeView) -> str:
    """Return a signal in one line, if there is no more to tell of it."""
    if signal.children or signal.request or signal.published is None or len(signal.deliveries) != 1:
        return ""
    delivery = signal.deliveries[0]
    if len(delivery.attempts) != 1 or delivery.gaps or delivery.crashes or delivery.state is not State.ACKED:
        return ""
    parts = [
        *(escape(signal.type), _id(signal, view), "→", escape(delivery.subscription)),
        *(state_words(delivery.state), duration(delivery.attempts[0].work), inferred(delivery.attempts[0])),
    ]
    return "  ".join(part for part in parts if part).replace("→  ", "→ ")


def _body(signal: SignalTrace, prefix: str, view: TreeView) -> Iterator[str]:
    """Yield deliveries with what they caused, then the reply, then what else the signal caused."""
    items: list[Delivery | Reply | SignalTrace] = [*signal.deliveries]
    if signal.reply is not None:
        items.append(signal.reply)
    items += [child for child in signal.children if child.cause is None]
    width = min(max((columns(escape(each.subscription)) for each in signal.deliveries), default=0), _NAME_COLUMNS)
    for number, item in enumerate(items):
        last = number == len(items) - 1
        branch, below = prefix + ("└─ " if last else "├─ "), prefix + ("   " if last else "│  ")
        if isinstance(item, Delivery):
            children = [child for child in signal.children if child.cause == item.subscription]
            yield from _delivery(item, children, branch, below, width, view)
        elif isinstance(item, Reply):
            yield branch + _reply(item)
        else:
            first, *rest = _signal(item, below, view)
            yield branch + first
            yield from rest


def _delivery(
    delivery: Delivery, children: Sequence[SignalTrace], branch: str, below: str, width: int, view: TreeView
) -> Iterator[str]:
    lines = list(_attempts(delivery, view))
    yield f"{branch}{padded(escape(delivery.subscription), width)}  {lines[0]}"
    for line in lines[1:]:
        yield f"{below}{' ' * width}  {line}"
    for number, child in enumerate(children):
        last = number == len(children) - 1
        first, *rest = _signal(child, below + ("   " if last else "│  "), view)
        yield below + ("└─ " if last else "├─ ") + first
        yield from rest


def _attempts(delivery: Delivery, view: TreeView) -> Iterator[str]:
    """Yield where the delivery stands, then its attempts, newest first."""
    newest = list(reversed(delivery.attempts))
    if newest and newest[0].replay == len(delivery.replays) and _SAME.get(newest[0].end) is delivery.state:
        yield _attempt(newest[0], state_words(delivery.state), view, ending=_waits(delivery, view))
        newest = newest[1:]
    else:
        yield f"{padded(state_words(delivery.state), _STATE_COLUMNS)}  {_waits(delivery, view)}"
    shown = newest if view.width is None else newest[:_ATTEMPTS]
    replay = delivery.attempts[-1].replay if delivery.attempts else 0
    for fact in delivery.replays[replay:]:
        yield f"↺ replayed   {clock(fact.at)}"
    gaps = list(reversed(delivery.gaps))
    for attempt in shown:
        while gaps and attempt.replay == 0 and gaps[0].first > attempt.number:
            yield _gap(gaps.pop(0))
        while attempt.replay < replay:
            replay -= 1
            yield f"↺ replayed   {clock(delivery.replays[replay].at)}"
        yield _attempt(attempt, state_words(attempt.end), view)
    if len(newest) > len(shown):
        yield f"… and {len(newest) - len(shown)} attempts before"
    for fact in delivery.replays[:replay]:
        yield f"↺ replayed   {clock(fact.at)}  (a dead letter before it inferred)"
    yield from map(_gap, gaps)
    if delivery.crashes:
        lost = f"{delivery.crashes} more {'run' if delivery.crashes == 1 else 'runs'}"
        yield f"{padded(state_words(End.LOST), _STATE_COLUMNS)}  {lost}  (inferred from the count of crashes)"


def _attempt(attempt: Attempt, words: str, view: TreeView, ending: str = "") -> str:
    running = attempt.end is End.RUNNING and attempt.began is not None and view.now is not None
    work = max(view.now - attempt.began.at, 0.0) if running and view.now and attempt.began else attempt.work
    parts = [
        padded(words, _STATE_COLUMNS),
        f"attempt {attempt.number}",
        f"{duration(work):>7}",
        f"waited {duration(attempt.queued)}" if attempt.queued is not None else "",
        escape(attempt.error),
        f"next after {duration(attempt.delay)}" if attempt.delay is not None else "",
        ending,
        who(attempt.origin),
        inferred(attempt),
    ]
    return "  ".join(part for part in parts if part)


def _gap(gap: Gap) -> str:
    attempts = f"attempt {gap.first}" if gap.first == gap.last else f"attempts {gap.first} to {gap.last}"
    return f"{padded(state_words(End.RETRIED), _STATE_COLUMNS)}  {attempts}  (inferred)"


def _waits(delivery: Delivery, view: TreeView) -> str:
    """Return what a delivery waits for."""
    parts: list[str] = []
    if delivery.state is State.WAITING and delivery.since is not None and view.now is not None:
        parts.append(f"queued {duration(view.now - delivery.since)}")
    if delivery.state is State.RETRYING and delivery.due is not None and view.now is not None:
        left = delivery.due - view.now
        parts.append(f"due in {duration(left)}" if left > 0 else f"overdue by {duration(-left)}")
    if delivery.state in (State.WAITING, State.RETRYING) and view.consumers is not None:
        count = view.consumers.get(delivery.subscription, 0)
        parts.append("" if count else "no subscriber is connected")
    return "  ".join(part for part in parts if part)


def _reply(reply: Reply) -> str:
    state = State.REPLIED if reply.outcome == "reply" else State.FAILED
    parts = [
        "reply",
        state_words(state) if state is State.REPLIED else f"{state_words(state)}: {escape(reply.outcome)}",
        f"work {duration(reply.work)}" if reply.work is not None else "",
        f"waited {duration(reply.waited)}" if reply.waited is not None else "",
        who(reply.origin) or escape(reply.responder),
        escape(reply.error),
        "(the responder's part inferred)" if state is State.REPLIED and reply.answered is None else "",
        "(what the requester got is not recorded)" if reply.received is None else "",
    ]
    return "  ".join(part for part in parts if part)


def _footer(trace: Trace) -> Iterator[str]:
    yield trace.root.summary
    for skew in trace.skews:
        early, late, by = escape(skew.early), escape(skew.late), duration(skew.seconds)
        if skew.early == skew.late:
            yield f"clocks: that of {late} was set back by at least {by}"
        else:
            yield f"clocks: that of {late} is behind that of {early} by at least {by}"
    if not trace.complete:
        yield "recorded in part (level or share): what is not here may have happened all the same"
    if trace.left_out:
        yield f"{trace.left_out} more signals, caused by these, are not shown"
