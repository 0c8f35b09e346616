"""What can be told from a death alone."""

from __future__ import annotations

import traceback
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signalbus.codec import RECEIPT_TO
from signalbus.deadletters.death import place_of, to_send
from signalbus.delivery import DeadReason, describe
from signalbus.errors import Reject
from signalbus.signals import utc_now
from tests.deadletters.deaths import TRACEBACK, content, death, failure


def charge(card: str) -> None:
    raise ValueError(f"no card\n{card}")


def formatted(error: BaseException) -> str:
    return describe(error, attempt=1, at=utc_now(), session="s").traceback


def raised(card: str = "") -> ValueError:
    try:
        charge(card)
    except ValueError as error:
        return error
    raise AssertionError


def test_the_place_is_the_innermost_frame_of_a_traceback() -> None:
    assert place_of(TRACEBACK) == "billing.py:12 in charge"
    line = charge.__code__.co_firstlineno + 1
    assert place_of(formatted(raised())) == f"test_death.py:{line} in charge"


def test_of_several_exceptions_the_place_is_that_of_the_last_one() -> None:
    def refund() -> None:
        try:
            charge("")
        except ValueError as error:
            raise KeyError("refund") from error

    with pytest.raises(KeyError) as caught:
        refund()
    assert place_of(formatted(caught.value)).endswith(" in refund")


def test_a_group_of_exceptions_has_a_place() -> None:
    group = ExceptionGroup("several", [ValueError("a"), raised()])
    assert place_of(formatted(group)).endswith(" in charge")


def test_what_has_no_traceback_has_no_place() -> None:
    assert place_of("") == ""
    assert place_of("<no traceback: formatting it raised ValueError>") == ""
    assert place_of(describe(Reject("no"), attempt=1, at=utc_now(), session="s").traceback) == ""


@given(st.text(max_size=300))
def test_the_place_of_any_text_is_short_and_one_line(text: str) -> None:
    place = place_of(text)
    assert len(place) <= 200
    assert "\n" not in place


def test_a_path_of_another_system_is_cut_to_its_file() -> None:
    assert place_of('  File "C:\\app\\shop\\billing.py", line 3, in <lambda>\n') == "billing.py:3 in <lambda>"


@given(st.text(), st.text(), st.text(), st.text())
def test_letters_are_the_same_for_the_same_subscription_and_signal_only(a: str, b: str, c: str, d: str) -> None:
    same = death(b, subscription=a).letter == death(d, subscription=c).letter
    assert same == (
        (a.encode("utf-8", "replace"), b.encode("utf-8", "replace"))
        == (c.encode("utf-8", "replace"), d.encode("utf-8", "replace"))
    )


def test_a_letter_is_the_same_however_often_and_for_whatever_it_dies() -> None:
    first = death()
    again = death(at=first.at + 1, position=7, copy=9, reason=DeadReason.REJECTED, history=())
    assert again.letter == first.letter
    forwarded = replace(first, content=content(headers={RECEIPT_TO: "router"}))
    assert forwarded.letter == first.letter


def test_another_body_or_source_is_another_letter() -> None:
    first = death()
    others = [
        replace(first, content=content(body=b"[]")),
        replace(first, content=content(headers={"cloudEvents_source": "shop"})),
        replace(first, content=content(headers={"cloudEvents_source": "shop2"})),
    ]
    assert len({first.letter, *(other.letter for other in others)}) == 4


def test_what_a_crash_or_the_broker_killed_died_of_no_error() -> None:
    assert (death().error, death().place) == ("ValueError", "billing.py:12 in charge")
    for reason in (DeadReason.CRASHES, DeadReason.BROKER):
        assert (death(reason=reason).error, death(reason=reason).place) == ("", "")
    assert death(history=()).error == ""


def test_groups_are_by_subscription_error_and_place_and_else_by_reason() -> None:
    elsewhere = failure(traceback=TRACEBACK.replace("line 12", "line 13"))
    groups = [
        death().group,
        death(subscription="shipping").group,
        death(history=(failure("KeyError"),)).group,
        death(history=(elsewhere,)).group,
        death(reason=DeadReason.CRASHES).group,
        death(reason=DeadReason.BROKER).group,
    ]
    assert len(set(groups)) == len(groups)
    assert death("signal-2", at=5.0, detail="ValueError: another").group == death().group
    assert death(reason=DeadReason.NEVER_RETRIED).group == death().group


def test_who_published_a_signal_does_not_hear_of_its_replay() -> None:
    original = content(headers={RECEIPT_TO: "publisher", "cloudEvents_source": "shop"})
    assert to_send(original).headers == {"cloudEvents_source": "shop"}
    assert to_send(original, "router").headers == {"cloudEvents_source": "shop", RECEIPT_TO: "router"}
    assert (to_send(original).id, to_send(original).body) == (original.id, original.body)


def test_tracebacks_of_this_python_are_read() -> None:
    text = "".join(traceback.format_exception(raised('  File "forged.py", line 1, in nobody')))
    assert place_of(text).startswith(("test_death.py:", "forged.py:"))
