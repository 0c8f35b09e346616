"""What a failure is to the caller: an exit code, one sentence, the cause and the next command. The only such place."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterator
from enum import IntEnum

from .. import errors
from ..escapes import escape, escape_json

SCHEMA_VERSION = 1


class Exit(IntEnum):
    """The exit codes. 130 and 143 are 128 plus the signal that stopped the program."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_PERMITTED = 4
    NOT_FOUND = 5
    BAD_OUTCOME = 6
    TIMED_OUT = 7


class CommandError(Exception):
    """Raised by a command: ``sentence`` says what failed, ``advice`` is the next thing to do."""

    def __init__(self, sentence: str, *, code: Exit, advice: str = "") -> None:
        super().__init__(sentence)
        self.code = code
        self.advice = advice


#: Exit code and next command of each error; the most derived class wins.
ERRORS: dict[type[BaseException], tuple[Exit, str]] = {
    errors.SignalBusError: (Exit.FAILED, "signalbus doctor"),
    errors.ConfigError: (Exit.USAGE, "signalbus doctor"),
    errors.NotPermitted: (Exit.NOT_PERMITTED, "signalbus doctor"),
    errors.InvalidSignal: (Exit.USAGE, "signalbus publish --help"),
    errors.DecodeError: (Exit.FAILED, "signalbus publish --help"),
    errors.Unroutable: (Exit.BAD_OUTCOME, "signalbus topology"),
    errors.BrokerError: (Exit.FAILED, "signalbus doctor"),
    errors.BrokerUnavailable: (Exit.UNREACHABLE, "signalbus doctor"),
    errors.Backpressure: (Exit.TIMED_OUT, "signalbus topology"),
    errors.PublishUnconfirmed: (Exit.TIMED_OUT, "signalbus doctor"),
    errors.StorageError: (Exit.FAILED, "signalbus doctor"),
    errors.BatchError: (Exit.FAILED, "signalbus topology"),
    errors.NotSettled: (Exit.TIMED_OUT, "signalbus subscribers"),
    errors.AudienceMismatch: (Exit.BAD_OUTCOME, "signalbus subscribers"),
    errors.RequestError: (Exit.FAILED, "signalbus subscribers"),
    errors.NoResponder: (Exit.NOT_FOUND, "signalbus respond --help"),
    errors.Overloaded: (Exit.TIMED_OUT, "signalbus subscribers"),
    errors.RemoteError: (Exit.BAD_OUTCOME, "signalbus subscribers"),
    errors.ResponderDown: (Exit.BAD_OUTCOME, "signalbus subscribers"),
    errors.ReplyLost: (Exit.UNREACHABLE, "signalbus doctor"),
    errors.RequestTimeout: (Exit.TIMED_OUT, "signalbus subscribers"),
    errors.MonitorCancelled: (Exit.FAILED, "signalbus doctor"),
    errors.BusClosed: (Exit.FAILED, "signalbus doctor"),
    errors.Escalated: (Exit.FAILED, "signalbus doctor"),
    TimeoutError: (Exit.TIMED_OUT, "signalbus doctor"),
    PermissionError: (Exit.NOT_PERMITTED, "signalbus doctor"),
}


def exit_code(error: BaseException) -> Exit:
    """Return the exit code that stands for an error."""
    if isinstance(error, CommandError):
        return error.code
    if isinstance(error, errors.BatchError):
        codes = [exit_code(outcome) for outcome in error.outcomes if isinstance(outcome, BaseException)]
        # Unroutable signals are a bad outcome; anything else that failed is worse.
        return next((code for code in codes if code is not Exit.BAD_OUTCOME), Exit.BAD_OUTCOME)
    if any(isinstance(cause, PermissionError) for cause in _causes(error)):
        return Exit.NOT_PERMITTED
    return _entry(error)[0]


def report(error: BaseException, command: str, *, verbose: bool, as_json: bool) -> Exit:
    """Print an error to stderr and return its exit code."""
    code = exit_code(error)
    advice = error.advice if isinstance(error, CommandError) else _entry(error)[1]
    expected = isinstance(error, CommandError | errors.SignalBusError | OSError)
    text = str(error) if expected else f"{type(error).__name__}: {error}"
    cause = _cause(error)
    if as_json:
        problem = {"type": type(error).__name__, "message": text, "cause": cause, "next": advice, "exit_code": code}
        print(escape_json(json.dumps({"schema_version": SCHEMA_VERSION, "error": problem})), file=sys.stderr)
    else:
        print(f"signalbus {command}: {escape(text)}", file=sys.stderr)
        if cause:
            print(f"  cause: {escape(cause)}", file=sys.stderr)
        if advice:
            print(f"  next:  {advice}", file=sys.stderr)
        if not expected and not verbose:
            print("  with -v: the traceback", file=sys.stderr)
    if verbose:
        for line in "".join(traceback.format_exception(error)).splitlines():
            print(escape(line), file=sys.stderr)
    return code


def _entry(error: BaseException) -> tuple[Exit, str]:
    for base in type(error).__mro__:
        if base in ERRORS:
            return ERRORS[base]
    return Exit.FAILED, ""


def _cause(error: BaseException) -> str:
    """Return the innermost cause that says something new."""
    said = str(error)
    for cause in reversed(list(_causes(error))):
        text = f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__
        if cause is not error and str(cause) not in said:
            return text
    return ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__
