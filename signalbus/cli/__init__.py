"""The command line. This file finds the command; everything heavy is imported after that."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

from .commands import COMMANDS, GROUPS, VALUE_OPTIONS, group_help, help_text

USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that is not UTF-8 gets escapes instead of a UnicodeEncodeError.
            stream.reconfigure(errors="backslashreplace")
    name, words = _split(list(sys.argv[1:] if arguments is None else arguments))
    if name == "help":
        name, words = _split(words)
        words = [*words, "--help"]
    if name is None:
        return _without_command(words)
    if name in GROUPS:
        second, words = _split(words)
        if second is None:
            return _without_second(name, words)
        name = f"{name} {second}"
    if name not in COMMANDS:
        return _unknown(name)
    from .dispatch import run_command

    return run_command(name, words)


def _split(words: list[str]) -> tuple[str | None, list[str]]:
    """Return the command and the other words; global options may stand before the command."""
    index = 0
    while index < len(words) and words[index].startswith("-"):
        index += 2 if words[index] in VALUE_OPTIONS else 1
    if index >= len(words):
        return None, words
    return words[index], [*words[:index], *words[index + 1 :]]


def _without_command(words: list[str]) -> int:
    if "--version" in words:
        from .dispatch import run_command

        return run_command("version", [word for word in words if word != "--version"])
    if "--help" in words or "-h" in words:
        sys.stdout.write(help_text())
        return 0
    sys.stderr.write(help_text())
    return USAGE


def _without_second(group: str, words: list[str]) -> int:
    if "--help" in words or "-h" in words:
        sys.stdout.write(group_help(group))
        return 0
    sys.stderr.write(group_help(group))
    return USAGE


def _unknown(name: str) -> int:
    import difflib

    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean 'signalbus {near[0]}'?" if near else "'signalbus --help' lists them"
    sys.stderr.write(f"signalbus: there is no command {name[:80]!a}; {hint}\n")
    return USAGE
