"""``signalbus doctor``: what works on this machine and what does not, and what to do about it."""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..config import RabbitUrl, Settings, parse_url
from ..errors import ConfigError
from .checks import Finding, State, check_broker, check_machine
from .failures import Exit
from .interrupts import run_interruptible
from .options import NO_OPTIONS, Options
from .output import Output, log_to_stderr
from .traces import STORE, StoreOption

EXAMPLES = """Examples:
  signalbus doctor
  signalbus doctor --url amqp://user:password@host/ --json
  signalbus doctor --store /var/lib/signalbus/ledger.db"""

GLYPHS = {State.OK: "✓ ok", State.WARNING: "! look", State.BAD: "✗ bad"}


def doctor(
    *,
    store: StoreOption = None,
    management: Annotated[
        str | None, Parameter(help="RabbitMQ's management API, by default at port 15672 of the broker's host.")
    ] = None,
    options: Options = NO_OPTIONS,
) -> int:
    """Check Python, SQLite, the place of the file or the broker, and what the broker complains about.

    For RabbitMQ also whether a policy changes what becomes of signals, and the store of a router, if one is named.
    Exit codes: 0 all is well, 3 the broker is unreachable, 4 not permitted, 6 something needs a look, 1 anything else.
    Changes nothing.
    """
    log_to_stderr(options)
    return run_interruptible(lambda: _doctor(store, management, options))


async def _doctor(store: Path | None, management: str | None, options: Options) -> int:
    output = Output(options)
    findings = [*check_machine(options), *await check_broker(options), *await _further(store, management, options)]
    code = _exit_code(findings)
    if options.json:
        checks = [{name: value for name, value in asdict(finding).items() if name != "code"} for finding in findings]
        output.json(good=code == Exit.OK, checks=checks)
        return code
    for finding in findings:
        if options.quiet and finding.state is State.OK:
            continue
        output.line(f"{GLYPHS[finding.state]:<7} {finding.check:<12} {finding.found}")
        if finding.advice:
            output.line(f"{'':<21}→ {finding.advice}")
    return code


async def _further(store: Path | None, management: str | None, options: Options) -> list[Finding]:
    """Check what only a RabbitMQ has: its policies, and a router's store."""
    findings: list[Finding] = []
    try:
        place = parse_url(Settings.read(url=options.url).url)
    except ConfigError:
        return findings  # reported by the other checks
    if isinstance(place, RabbitUrl):
        from .check_rabbitmq import check_policies

        findings += await check_policies(place, management)
        if store is None and STORE in os.environ:
            store = Path(os.environ[STORE])
    if store is not None:
        from .check_store import check_store

        findings += await asyncio.to_thread(lambda: list(check_store(store)))
    return findings


def _exit_code(findings: list[Finding]) -> Exit:
    bad = [finding.code for finding in findings if finding.state is State.BAD]
    if bad:
        return bad[0]
    return Exit.BAD_OUTCOME if any(finding.state is State.WARNING for finding in findings) else Exit.OK
