"""``signalbus publish``: one signal from the command line, or many from JSON lines."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal

from cyclopts import Parameter

from ..bus import PublishKeywords
from ..codec import JSON, encode, is_json
from ..errors import NotSettled
from ..escapes import escape
from ..receipts import Outcome, Receipt
from ..signals import ExtensionValue, Signal
from .bodies import checked, read_body
from .connect import command_bus, command_name
from .failures import CommandError, Exit
from .interrupts import run_interruptible
from .lines import LineReport, open_input, publish_lines
from .options import NO_OPTIONS, Options, flag
from .output import Output, log_to_stderr

_GLYPHS = {Outcome.ACKED: "✓", Outcome.DEAD: "✗", Outcome.PENDING: "…"}

EXAMPLES = """Examples:
  signalbus publish order.placed '{"order_id": "A1", "total": 9.5}'
  echo '{"order_id": "A2"}' | signalbus publish order.placed -
  signalbus publish photo.taken @photo.jpg --content-type image/jpeg
  signalbus publish order.placed '{"order_id": "A3"}' --until acked --timeout 5
  signalbus publish order.placed @orders.jsonl --lines
  signalbus tail --json | signalbus publish --lines --url amqp://other/"""


def publish(
    type: Annotated[str | None, Parameter(help="The type, like order.placed; not needed for whole events.")] = None,  # noqa: A002
    body: Annotated[str | None, Parameter(help="The data: JSON, - for standard input, @file for a file.")] = None,
    /,
    *,
    lines: Annotated[bool, flag("--lines", "Each line is a signal: its data as JSON, or a whole CloudEvent.")] = False,
    subject: Annotated[str | None, Parameter(help="What the signal is about.")] = None,
    source: Annotated[str | None, Parameter(help="Who publishes it; by default this user at this host.")] = None,
    extension: Annotated[
        list[str] | None, Parameter(negative=(), help="An extension attribute, name=value; may be repeated.")
    ] = None,
    content_type: Annotated[str | None, Parameter(help="Type of the data, if it is not JSON.")] = None,
    unroutable: Annotated[
        Literal["raise", "ignore"], Parameter(help="What to do when no subscription matches.")
    ] = "raise",
    until: Annotated[
        Literal["stored", "acked"], Parameter(help="Return when it is stored, or when every subscription settled it.")
    ] = "stored",
    expect: Annotated[int | None, Parameter(help="Publish only if so many subscriptions match.")] = None,
    dry_run: Annotated[bool, flag("--dry-run", "Check everything and publish nothing.")] = False,
    options: Options = NO_OPTIONS,
) -> int:
    """Publish a signal; returns when the broker has stored it for every matching subscription.

    With --until acked it prints what became of it at each subscription; the exit code is 6 if it is dead at one, and
    7 if one has not settled it before --timeout. With --lines, bad lines are reported by number and the others are
    published; the exit code is 6 then.
    """
    log_to_stderr(options)
    if lines and body is None and (type is None or type.startswith("@")):
        type, body = None, type  # noqa: A001
    extensions = _extensions(extension or [])

    def signal_of(data: bytes, type_: str) -> Signal:
        return Signal(
            type=type_,
            data=checked(data, content_type),
            source=source or "",
            subject=subject,
            datacontenttype=content_type or (JSON if data or lines else None),
            extensions=extensions,
        )

    if lines:
        if content_type is not None and not is_json(content_type):
            raise CommandError(
                f"--lines are JSON, not {content_type[:80]!a}", code=Exit.USAGE, advice="leave --content-type out"
            )
        template = None if type is None else signal_of(b"", type)
        return run_interruptible(
            lambda: _publish_lines(body or "@-", template, dry_run=dry_run, unroutable=unroutable, options=options)
        )
    if type is None:
        raise CommandError("a type is missing", code=Exit.USAGE, advice="signalbus publish --help")
    signal = signal_of(read_body(body), type)
    how: PublishKeywords = {"unroutable": unroutable, "until": until, "expect": expect}
    return run_interruptible(lambda: _publish_one(signal, how, dry_run=dry_run, options=options))


async def _publish_one(signal: Signal, how: PublishKeywords, *, dry_run: bool, options: Options) -> int:
    output = Output(options)
    if dry_run:
        encoded = encode(signal, default_source=command_name())
        if options.json:
            output.json(id=signal.id, type=signal.type, bytes=encoded.size, dry_run=True)
        else:
            output.line(f"would publish {signal.type} {signal.id}, {encoded.size} bytes")
        return Exit.OK
    async with command_bus(options) as bus:
        try:
            receipt = await bus.publish(signal, **how)
        except NotSettled as error:
            _show(error.receipt, output, options)
            raise
    _show(receipt, output, options)
    dead = any(each.outcome is Outcome.DEAD for each in receipt.subscriptions)
    return Exit.BAD_OUTCOME if dead else Exit.OK


def _show(receipt: Receipt, output: Output, options: Options) -> None:
    if options.json:
        output.json(
            id=receipt.id,
            type=receipt.type,
            routed=receipt.routed,
            stored_at=receipt.stored_at.isoformat(),
            attempts=receipt.attempts,
            subscriptions=[asdict(each) for each in receipt.subscriptions],
        )
    elif not options.quiet:
        output.line(f"{receipt.id} {receipt.type} {'✓ stored' if receipt.routed else '· no subscription matches'}")
        for each in receipt.subscriptions:
            words = f"{_GLYPHS[each.outcome]} {each.outcome}  {each.subscription}  {each.detail}"
            output.line(f"  {escape(words.rstrip())}")


async def _publish_lines(
    body: str,
    template: Signal | None,
    *,
    dry_run: bool,
    unroutable: Literal["raise", "ignore"],
    options: Options,
) -> int:
    output = Output(options)
    report = LineReport(on_bad=lambda number, reason: output.warn(f"line {number}: {reason}"))
    with open_input(body) as source:
        if dry_run:
            await publish_lines(source, template, None, report, unroutable, output)
        else:
            async with command_bus(options) as bus:
                await publish_lines(source, template, bus, report, unroutable, output)
    if options.json:
        output.json(dry_run=dry_run, **report.fields())
    elif not options.quiet:
        output.line(f"{'would publish' if dry_run else 'published'} {report.summary()}")
    return report.exit_code


def _extensions(pairs: list[str]) -> dict[str, ExtensionValue]:
    extensions: dict[str, ExtensionValue] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator:
            raise CommandError(
                f"extension {pair[:80]!a} is not name=value", code=Exit.USAGE, advice="signalbus publish --help"
            )
        extensions[name] = value
    return extensions
