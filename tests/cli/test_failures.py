from __future__ import annotations

import json

import pytest

from signalbus import errors
from signalbus.cli.failures import ERRORS, CommandError, Exit, exit_code, report
from signalbus.receipts import Receipt
from signalbus.signals import utc_now


def every_error() -> list[type[errors.SignalBusError]]:
    found = [errors.SignalBusError]
    for error in found:
        found.extend(error.__subclasses__())
    return [error for error in found if error.__module__ == "signalbus.errors"]


def test_every_error_of_signalbus_has_an_exit_code_of_its_own_choice() -> None:
    assert {error.__name__ for error in every_error()} - {error.__name__ for error in ERRORS} == set()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("x"), 2),
        (errors.InvalidSignal("x"), 2),
        (errors.BrokerUnavailable("x"), 3),
        (errors.Unroutable("1", "a.b"), 6),
        (errors.PublishUnconfirmed("1", "x"), 7),
        (errors.Backpressure("x"), 7),
        (errors.StorageError("x"), 1),
        (errors.Escalated("x"), 1),
        (TimeoutError(), 7),
        (CommandError("x", code=Exit.NOT_FOUND), 5),
        (ZeroDivisionError(), 1),
    ],
)
def test_exit_codes(error: BaseException, code: int) -> None:
    assert exit_code(error) == code


def test_a_missing_right_is_told_from_other_failures() -> None:
    error = errors.StorageError("cannot open x.db")
    error.__cause__ = PermissionError("x.db")
    assert exit_code(error) is Exit.NOT_PERMITTED


def test_a_batch_is_as_bad_as_its_worst_outcome() -> None:
    receipt = Receipt(id="1", type="a", stored_at=utc_now())
    unroutable = errors.Unroutable("1", "a")
    assert exit_code(errors.BatchError([receipt, unroutable])) == 6
    assert exit_code(errors.BatchError([receipt, unroutable, errors.BrokerUnavailable("x")])) == 3


def test_an_error_is_a_sentence_a_cause_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    error = errors.BrokerUnavailable("no broker")
    error.__cause__ = OSError("refused \x1b[31m")
    report(error, "tail", verbose=False, as_json=False)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "signalbus tail: no broker",
        "  cause: OSError: refused \\x1b[31m",
        "  next:  signalbus doctor",
    ]


def test_a_traceback_comes_only_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ZeroDivisionError("x")
    except ZeroDivisionError as error:
        report(error, "tail", verbose=False, as_json=False)
        assert "Traceback" not in capsys.readouterr().err
        report(error, "tail", verbose=True, as_json=False)
        assert "Traceback" in capsys.readouterr().err


def test_an_error_as_json_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    report(errors.ConfigError("bad"), "tail", verbose=False, as_json=True)
    captured = capsys.readouterr()
    problem = json.loads(captured.err)
    assert captured.out == ""
    assert problem["schema_version"] == 1
    assert problem["error"]["type"] == "ConfigError"
    assert problem["error"]["exit_code"] == 2
