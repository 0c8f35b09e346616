"""Pages of traces: the list, the search by id, and one trace."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ...trace.listing import MIN_PREFIX
from ...trace.model import SignalTrace, State, Trace
from . import links, payloads
from .questions import TraceQuestion
from .site import NotFound, Site
from .steps import steps
from .timeline import timeline

#: The most urgent first.
_ORDER = (
    *(State.DEAD, State.FAILED, State.UNROUTABLE, State.RETRYING),
    *(State.WAITING, State.IN_HAND, State.ASKED, State.ACKED, State.REPLIED),
)
_WAITING = (State.WAITING, State.RETRYING)

MAX_BRANCHES = 100  # signals of the tree


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a signal stands: one state, and the subscriptions that it is in; none for a request."""

    state: State
    names: tuple[str, ...]


def standings(signal: SignalTrace) -> list[Standing]:
    """Return where a signal stands, the most urgent first."""
    return [
        Standing(state=state, names=tuple(each.subscription for each in signal.deliveries if each.state is state))
        for state in _ORDER
        if state in signal.states
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """A signal in the tree of causes. ``depth`` from 0; ``cause``: the subscription whose handler published it."""

    signal: SignalTrace
    depth: int

    @property
    def waiting(self) -> Sequence[str]:
        """Where it waits."""
        return [each.subscription for each in self.signal.deliveries if each.state in _WAITING]


class TracePages:
    """The list of signals, and single ones."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._traces = site.inspection.traces

    async def listing(self, request: Request) -> Response:
        """Show signals, newest first."""
        asked = TraceQuestion.read(request.query_params)
        page = await self._traces.page(asked.query())
        older = "" if page.next is None else links.with_query(links.TRACES, asked.fields(before=str(page.next)))
        return self._site.page(
            request,
            "traces.html",
            asked=asked,
            rows=[(listed, standings(listed.signal)) for listed in page.signals],
            complete=page.complete,
            older=older,
            newest=links.with_query(links.TRACES, asked.fields(before="")),
            behind=self._traces.behind,
            states=tuple(State),
            now=time.time(),
        )

    async def search(self, request: Request) -> Response:
        """Find a signal by how its id begins: go there, or show what there is to choose from."""
        prefix = request.query_params.get("id", "").strip(" \t")
        if len(prefix) < MIN_PREFIX:
            raise NotFound(f"{prefix[:40]!a} is too short for an id: give at least {MIN_PREFIX} characters")
        found = await self._traces.find(prefix)
        if len(found) == 1:
            there = links.trace_url(found[0].id)
            return await self._show(request, found[0].id) if "?" in there else RedirectResponse(there, 303)
        return self._site.page(
            request, "candidates.html", status=200 if found else 404, prefix=prefix, found=found, now=time.time()
        )

    async def show(self, request: Request) -> Response:
        """Show the trace of a signal."""
        return await self._show(request, str(request.path_params["id"]))

    async def _show(self, request: Request, signal: str) -> Response:
        trace = await self._traces.trace(signal)
        if not _known(trace):
            raise NotFound(f"nothing is known of a signal {signal[:80]!a}: it may have been pruned, or the id is cut")
        now = time.time()
        rows, more = steps(trace)
        tree = branches(trace.root)
        return self._site.page(
            request,
            "trace.html",
            trace=trace,
            root=trace.root,
            tree=tree,
            more_branches=len(tree) == MAX_BRANCHES,
            standings=standings(trace.root),
            figure=timeline(trace, now),
            steps=rows,
            more_steps=more,
            payload=None if trace.root.data is None else payloads.of_record(trace.root.data, cut=trace.root.cut),
            unserved=await self._unserved(tree),
            behind=self._traces.behind,
            now=now,
        )

    async def _unserved(self, tree: Sequence[Branch]) -> frozenset[str]:
        """Return the subscriptions that a delivery waits for, and that nobody serves."""
        waiting = {name for branch in tree for name in branch.waiting}
        if not waiting:
            return frozenset()
        bus = self._site.inspection.bus
        served = {queue.name for queue in await bus.broker.queues(bus.settings.connect_timeout) if queue.consumers}
        return frozenset(waiting - served)


def branches(root: SignalTrace) -> list[Branch]:
    """Return the tree in the order of reading, each before what it caused, within a bound."""
    found: list[Branch] = []
    pending = [Branch(signal=root, depth=0)]
    while pending and len(found) < MAX_BRANCHES:
        branch = pending.pop()
        found.append(branch)
        pending.extend(Branch(signal=child, depth=branch.depth + 1) for child in reversed(branch.signal.children))
    return found


def _known(trace: Trace) -> bool:
    root = trace.root
    return bool(root.published or root.deliveries or root.reply or root.children)
