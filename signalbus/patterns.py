"""Patterns over signal types, in AMQP topic syntax: parse and match. Pure.

``*`` stands for exactly one word, ``#`` for zero or more. RabbitMQ's topic exchange gives the same
answers (a test compares the two), but needs exponential time for several ``#``; so a pattern may have
one run of ``#``, which also makes our matcher linear.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import ConfigError, InvalidSignal

MAX_WORDS = 32  # with one '#' run, brokers match such a pattern in microseconds
MAX_LENGTH = 128  # aiormq cuts routing keys longer than 128 bytes with no more than a log line

_WORD = re.compile(r"[A-Za-z0-9_-]+\Z")


def check_type(signal_type: str) -> str:
    """Return ``signal_type`` if it is dot-separated words of ``A-Z a-z 0-9 _ -``, else raise `InvalidSignal`."""
    problem = _problem(signal_type, wildcards=False)
    if problem:
        raise InvalidSignal(f"invalid signal type {_shown(signal_type)}: {problem}; use words like 'order.placed'")
    return signal_type


@dataclass(frozen=True, slots=True)
class Pattern:
    """A parsed pattern. ``head`` matches from the left, ``tail`` (only after a ``#``) from the right."""

    text: str
    head: tuple[str, ...]
    tail: tuple[str, ...] | None

    def matches(self, signal_type: str) -> bool:
        """Tell whether the pattern matches; linear in the number of words."""
        words = signal_type.split(".")
        if self.tail is None:
            return len(words) == len(self.head) and _agree(self.head, words)
        if len(words) < len(self.head) + len(self.tail):
            return False
        return _agree(self.head, words) and _agree(self.tail, words[len(words) - len(self.tail) :])


def parse(text: str) -> Pattern:
    """Parse a pattern, or raise `ConfigError` saying what is wrong with it."""
    problem = _problem(text, wildcards=True)
    if problem:
        raise ConfigError(f"invalid pattern {_shown(text)}: {problem}; use patterns like 'order.*' or 'order.#'")
    words = text.split(".")
    if "#" not in words:
        return Pattern(text, tuple(words), None)
    first = words.index("#")
    last = len(words) - words[::-1].index("#")
    if any(word != "#" for word in words[first:last]):
        raise ConfigError(
            f"invalid pattern {_shown(text)}: more than one run of '#', on which brokers hang; "
            "use several patterns for one subscription instead"
        )
    return Pattern(text, tuple(words[:first]), tuple(words[last:]))


def _agree(pattern: tuple[str, ...], words: list[str]) -> bool:
    return all(expected in ("*", word) for expected, word in zip(pattern, words, strict=False))


def _problem(text: object, *, wildcards: bool) -> str | None:
    if not isinstance(text, str):
        return f"it is {type(text).__name__}, not a string"
    if not text:
        return "it is empty"
    if len(text) > MAX_LENGTH:
        return f"{len(text)} characters, more than {MAX_LENGTH}"
    words = text.split(".")
    if len(words) > MAX_WORDS:
        return f"{len(words)} words, more than {MAX_WORDS}"
    for word in words:
        if wildcards and word in ("*", "#"):
            continue
        if not word:
            return "an empty word between dots"
        if not _WORD.match(word):
            return f"the word {_shown(word)} has characters other than A-Z a-z 0-9 _ -"
    return None


def _shown(text: object) -> str:
    shown = ascii(text[:80] if isinstance(text, str) else text)  # cut first: it may be megabytes
    return shown if len(shown) <= 80 else shown[:77] + "..."
