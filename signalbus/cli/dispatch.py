"""From words to a command: parses them with cyclopts, runs the command, turns failures into exit codes."""

from __future__ import annotations

import importlib
import os
import sys
from typing import cast

from cyclopts import App, CycloptsError

from .failures import CommandError, Exit, report

BROKEN_PIPE = 141  # 128 + SIGPIPE, as in a shell: `signalbus tail | head -1`


def run_command(name: str, words: list[str]) -> int:
    """Run one command and return its exit code."""
    verbose = "-v" in words or "--verbose" in words
    as_json = "--json" in words
    try:
        result = _app(name)([_marked(word) for word in words], exit_on_error=False, print_error=False)
        sys.stdout.flush()
        return cast("int", result)
    except CycloptsError as error:
        usage = CommandError(str(error), code=Exit.USAGE, advice=f"signalbus {name} --help")
        return report(usage, name, verbose=False, as_json=as_json)
    except BrokenPipeError:
        # Else the interpreter complains when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - the outermost frame: a sentence for people, the traceback with -v
        return report(error, name, verbose=verbose, as_json=as_json)


def _app(name: str) -> App:
    function = name.replace(" ", "_")
    module = importlib.import_module(f".{function}", __package__)
    app = App(
        name=f"signalbus {name}",
        help_format="plaintext",
        help_formatter="plain",
        help_epilogue=module.EXAMPLES,
        version_flags=[],
        result_action="return_value",
    )
    app.default(getattr(module, function))
    return app


def _marked(word: str) -> str:
    """Write ``-`` (standard input) as a file: cyclopts takes it for an option without a name."""
    return "@-" if word == "-" else word
