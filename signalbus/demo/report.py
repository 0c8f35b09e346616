"""The end of a demo, for people and as JSON."""

from __future__ import annotations

import shutil
from collections.abc import Mapping

from ..cli.output import Output
from ..trace.rendering_tree import TreeView, render_tree
from .demonstration import Outcome
from .reconcile import Account, AirlineDelay, Balance

SLOWEST = 5
FEW_FLIGHTS = 30  # a mean of fewer says little
SHOWN = 10  # lost signals and wrong statistics that are named


def print_balance(balance: Balance, output: Output) -> None:
    """Print the account of each subscription, the airlines and what is wrong."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title="subscriptions", title_justify="left", title_style="bold")
    table.add_column("")
    for heading in _row(balance.accounts[0]):
        table.add_column(heading, justify="right")
    for account in balance.accounts:
        table.add_row(account.name, *(str(value) for value in _row(account).values()))
    output.table(table)

    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"slowest airlines with {FEW_FLIGHTS} flights or more",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("airline")
    for heading in ("flights", "mean departure delay", "mean arrival delay"):
        table.add_column(heading, justify="right")
    many = [airline for airline in balance.airlines if airline.flights >= FEW_FLIGHTS]
    for airline in many[:SLOWEST]:
        table.add_row(
            f"{airline.name} ({airline.carrier})",
            str(airline.flights),
            _minutes(airline.departure),
            _minutes(airline.arrival),
        )
    output.table(table)
    for problem in balance.wrong[:SHOWN]:
        output.line(f"✗ wrong: {problem}")
    for account in balance.accounts:
        for signal_id in sorted(account.lost)[:SHOWN]:
            output.line(f"✗ lost: {account.name} never handled {signal_id}")
        for signal_id in sorted(account.strange)[:SHOWN]:
            output.line(f"✗ strange: {account.name} handled {signal_id}, which was not published to it")


def print_outcome(outcome: Outcome, output: Output) -> None:
    """Print the numbers of a demo that has just run."""
    balance = outcome.balance
    print_balance(balance, output)
    handled = sum(account.handled for account in balance.accounts)
    rate = f"{handled / outcome.seconds:,.0f} a second" if outcome.seconds else "-"
    output.line(
        f"{balance.published} signals published, {handled} deliveries handled in {outcome.seconds:.1f} s ({rate}) "
        f"on {outcome.broker}; {outcome.kills} processes killed, {outcome.restarts} started again"
    )
    output.line(
        f"the killed subscriber's Down came after {_milliseconds(outcome.down_seconds)}; "
        f"a request whose responder was killed ended with ResponderDown after {_milliseconds(outcome.refused_seconds)}"
    )
    for story in outcome.stories:
        output.line(f"\n{story.title}:")
        output.line(
            render_tree(story.trace, TreeView(width=shutil.get_terminal_size().columns if output.watched else None))
        )
    output.line(f"\nits page was {outcome.page} while it ran; signalbus demo --stay leaves it there")
    output.line(verdict(balance))


def verdict(balance: Balance) -> str:
    """Return the result in one line."""
    if balance.good:
        return "✓ good: 0 lost, 0 dead letters; the statistics equal those worked out from the file"
    return f"✗ bad: {balance.lost} lost, {balance.dead} dead letters, {len(balance.wrong)} wrong statistics"


def balance_fields(balance: Balance) -> dict[str, object]:
    """Return the account as JSON fields."""
    return {
        "good": balance.good,
        "published": balance.published,
        "lost": balance.lost,
        "dead_lettered": balance.dead,
        "subscriptions": {account.name: _row(account) for account in balance.accounts},
        "airlines": [_airline(airline) for airline in balance.airlines],
        "wrong": list(balance.wrong),
    }


def outcome_fields(outcome: Outcome) -> dict[str, object]:
    """Return a demo as JSON fields."""
    handled = sum(account.handled for account in outcome.balance.accounts)
    return {
        **balance_fields(outcome.balance),
        "broker": outcome.broker,
        "page": outcome.page,
        "seconds": round(outcome.seconds, 3),
        "handled": handled,
        "handled_per_second": round(handled / outcome.seconds) if outcome.seconds else None,
        "killed": outcome.kills,
        "restarted": outcome.restarts,
        "good": outcome.good,
        "down_seconds": outcome.down_seconds,
        "responder_down_seconds": outcome.refused_seconds,
        "traces": {story.title: story.trace.root.id for story in outcome.stories},
    }


def _row(account: Account) -> Mapping[str, int]:
    return {
        "expected": account.expected,
        "handled": account.handled,
        "redelivered": account.counts.redelivered,
        "retried": account.counts.retried,
        "duplicates": account.counts.duplicates,
        "dead_letters": account.dead,
        "lost": len(account.lost),
    }


def _airline(airline: AirlineDelay) -> Mapping[str, object]:
    return {
        "carrier": airline.carrier,
        "name": airline.name,
        "flights": airline.flights,
        "mean_departure_delay": airline.departure,
        "mean_arrival_delay": airline.arrival,
    }


def _milliseconds(seconds: float | None) -> str:
    return "- (it never came)" if seconds is None else f"{seconds * 1000:.1f} ms"


def _minutes(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} min"
