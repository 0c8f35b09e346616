"""``signalbus doctor``: what works on this machine and what does not, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict

from .checks import Finding, State, check_broker, check_machine
from .failures import Exit
from .interrupts import run_interruptible
from .options import NO_OPTIONS, Options
from .output import Output, log_to_stderr

EXAMPLES = """Examples:
  signalbus doctor
  signalbus doctor --url amqp://user:password@host/ --json"""

GLYPHS = {State.OK: "✓ ok", State.WARNING: "! look", State.BAD: "✗ bad"}


def doctor(*, options: Options = NO_OPTIONS) -> int:
    """Check Python, SQLite, the place of the file or the broker, and what the broker complains about.

    Exit codes: 0 all is well, 3 the broker is unreachable, 4 not permitted, 6 something needs a look, 1 anything else.
    Changes nothing.
    """
    log_to_stderr(options)
    return run_interruptible(lambda: _doctor(options))


async def _doctor(options: Options) -> int:
    output = Output(options)
    findings = [*check_machine(options), *await check_broker(options)]
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


def _exit_code(findings: list[Finding]) -> Exit:
    bad = [finding.code for finding in findings if finding.state is State.BAD]
    if bad:
        return bad[0]
    return Exit.BAD_OUTCOME if any(finding.state is State.WARNING for finding in findings) else Exit.OK
